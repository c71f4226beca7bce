# %% [markdown]
# # Train, forget, look at the evidence
#
# One model is trained over five simulated clients on scikit-learn's handwritten digits. It
# forgets the digit 9, then one of the clients; each time a model that never saw the data is
# trained as the yardstick. Everything here is `efface` from Python; the command line does the
# same.

# %%
import tempfile

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import efface

NUM_CLIENTS, ROUNDS, LEAVING = 5, 15, "client-3"
home = tempfile.TemporaryDirectory()  # leave `home` out to keep all of it in ~/.efface

federation = efface.Federation.inline("digits", num_clients=NUM_CLIENTS, home=home.name)

# %% [markdown]
# ## Train
#
# The clients' data are unequal (`partition="dirichlet:0.5"` by default). While they train, each
# makes synthetic images of its own data, which never leave it: the default method forgets with
# them.

# %%
trained = federation.train(rounds=ROUNDS)
print(trained, f"{trained.scores.retain_accuracy:.1f} % of the test images are right")

# %%
rounds = trained.result.record.timeline
figure, axes = plt.subplots(figsize=(6, 2.6))
axes.plot([step.round for step in rounds], [step.retain_accuracy for step in rounds], marker="o")
axes.set(xlabel="Round", ylabel="Test accuracy, %", ylim=(0, 100), title="Training")
plt.show()

# %% [markdown]
# ## Forget the digit 9
#
# First the plan: nothing is written down, and no client is asked.

# %%
plan = federation.plan(class_=9, compare="retrain")
print(f"{plan.method}: {plan.rounds} rounds, {plan.bytes_up / 1e6:.1f} MB up")

# %%
result = federation.forget(class_=9, compare="retrain", by="Data protection", why="Request 17")
print(result)
print(result.verdict)

# %% [markdown]
# The verdict rests on two things: the accuracy on the digit 9, and how fast the digit comes back
# when the model is trained on a few of its images. A model can say "never a 9" and still hide it;
# then it comes back much faster than in the model that never saw one.

# %%
record = result.record
models = {
    "Original": record.original,
    "Retrained": record.retrained,
    "Unlearned": record.recovered,
}
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.2))
for shift, (name, scores) in enumerate(models.items()):
    places = [digit + 0.27 * (shift - 1) for digit in range(10)]
    left.bar(places, scores.per_class_accuracy, width=0.25, label=name)
    curve = scores.relearning_curve
    right.plot(curve.steps, curve.forget_accuracy, marker="o", label=name)
left.set(xticks=range(10), xlabel="Digit", ylabel="Test accuracy, %", title="By digit")
right.set(xlabel="Steps of training on a few 9s", ylabel="Accuracy on 9, %", title="Relearning")
right.legend()
plt.show()

# %%
seconds = {phase: value for phase, value in result.costs.seconds.items() if value}
figure, axes = plt.subplots(figsize=(6, 1.8))
axes.barh(list(seconds), list(seconds.values()))
axes.set(xlabel="Seconds", title=f"{record.speed_up.request:.0f} times shorter than retraining")
plt.show()

# %% [markdown]
# ## The model itself
#
# `version.model()` is a plain torch module in evaluation mode. It takes pixels from 0 to 1,
# normalised as in training. A version that knows what was forgotten since gives its weights only to
# whoever names the request.

# %%
digits = load_digits()
nines = torch.tensor(digits.images[digits.target == 9][:8] / 16, dtype=torch.float32)


def answers(version: efface.Version, forgotten_by: str | None = None) -> list[int]:
    inputs = (nines.unsqueeze(1) - version.mean[0]) / version.std[0]
    with torch.no_grad():
        network = version.model(allow_forgotten=forgotten_by)
        return network(inputs).argmax(1).tolist()


before, after = answers(trained, result.version.request), answers(result.version)
figure, panels = plt.subplots(1, len(nines), figsize=(11, 1.8))
for panel, image, old, new in zip(panels, nines, before, after, strict=True):
    panel.imshow(image, cmap="gray_r")
    panel.set_title(f"{old} → {new}")
    panel.axis("off")
plt.show()

# %% [markdown]
# ## A method that hides instead
#
# Negating the first layer's weights and training on makes the accuracy on a digit vanish as well.
# Whether the digit is forgotten, its curve tells. A result whose verdict is not "passed" is
# turned away: the version in service stays. (A second digit, for the 9 is forgotten already.)

# %%
hidden = federation.forget(class_=4, method="not", compare="retrain")
print(hidden)
print(hidden.verdict)
print("in service:", federation.in_service)

# %% [markdown]
# ## A client leaves
#
# A client's data are forgotten when the model knows what the client held out no better than a model
# that was trained without it. Of a client whose data are like the others', Original knows no more
# either: then the verdict is "not shown".

# %%
leaving = federation.forget(client=LEAVING, compare="retrain", why="Contract ended")
print(leaving)
print(leaving.verdict)

# %% [markdown]
# ## The report, the ledger, and the way back
#
# The report is one HTML page for whoever asked. What was forgotten stays out of later training
# until it is relearned.

# %%
page = result.report()
print(page.name, f"{page.stat().st_size / 1000:.0f} kB")
for row in federation.requests():
    print(
        row.id, row.kind, row.method, row.reason_code or row.state, row.asked_by, row.why, sep=" | "
    )
for erased in federation.forgotten():
    print("forgotten:", erased.classes or erased.clients, "by", erased.request)

# %%
back = federation.relearn(class_=9)
print(back.version, f"accuracy on 9: {back.version.scores.per_class_accuracy[9]:.0f} %")
