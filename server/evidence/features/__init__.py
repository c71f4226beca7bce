"""What a model still knows below its last layer, measured on the coordinator's test images.

Accuracy, and to a degree the relearning curve, can be satisfied by editing the last layer alone.
These measures look at its inputs, the *features*, and at what lies before them; `measures` has them
all. They do not decide a verdict yet.
"""
