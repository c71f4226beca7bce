"""Whatever a ConfigRecord says, a handler refuses it as one of our errors, or does its work."""

import math
from dataclasses import fields
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.app import handlers
from client.errors import BadSetting, EffaceError, split_mark
from client.messages import Common
from client.settings import Settings
from tests.messages import message, told, weights

KINDS: list[type[Common]] = sorted((h.kind for h in handlers().values()), key=str)

SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=300),
    st.binary(max_size=20),
)
VALUES = st.one_of(
    SCALARS,
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    st.lists(st.floats(), max_size=5),
    st.lists(st.text(max_size=20), max_size=5),
    st.lists(st.booleans(), max_size=5),
)
# What a coordinator may ask for, and is long: not what this test is about.
LONG = {"steps", "epochs", "image-steps", "outer-steps", "inner-steps"}
MOST = 3


@pytest.fixture(autouse=True)
def _node(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_STORE", str(tmp_path_factory.mktemp("store")))
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def ask(kind: type[Common], config: ConfigRecord) -> str | None:
    """Return why the handler refuses, or None if it does not; any other exception is raised."""
    context = Context(1, 1, {"partition-id": 0}, RecordDict(), {})
    asked = message(kind.message.name, config, weights())
    try:
        answer = handlers()[kind.message.name](asked, context)
    except EffaceError as error:
        return str(error)
    content = answer.content
    assert (len(content), len(content.array_records), len(content.metric_records)) == (2, 1, 1)
    return None


def short(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with small numbers where large ones ask for long work."""
    return {
        key: min(value, MOST) if key in LONG and type(value) is int else value
        for key, value in config.items()
    }


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=st.dictionaries(st.text(min_size=1, max_size=30), VALUES, max_size=8))
def test_a_config_of_anything_is_refused(kind: type[Common], config: dict[str, Any]) -> None:
    reason = ask(kind, ConfigRecord(config))
    assert reason is not None
    assert split_mark(reason)[0] == BadSetting.code


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_config_with_other_values_is_refused_or_obeyed(
    kind: type[Common], data: st.DataObject
) -> None:
    good = dict(told(kind, **kind.message.example).config())
    keys = data.draw(st.lists(st.sampled_from(sorted(good)), min_size=1, max_size=3, unique=True))
    changed = {key: data.draw(VALUES, label=key) for key in keys}
    config = short({**good, **changed})
    for key in data.draw(st.lists(st.sampled_from(sorted(good)), max_size=1)):
        del config[key]
    ask(kind, ConfigRecord(config))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_settings_are_parsed_or_refused_and_come_back_as_they_were(
    kind: type[Common], data: st.DataObject
) -> None:
    good = dict(told(kind, **kind.message.example).config())
    keys = data.draw(st.lists(st.sampled_from(sorted(good)), min_size=1, max_size=4, unique=True))
    config = {**good, **{key: data.draw(VALUES, label=key) for key in keys}}
    try:
        found = kind.parse(config)
    except BadSetting:
        return
    again = found.config()
    assert kind.parse(again) == found
    assert again.keys() == config.keys()
    assert all(not isinstance(v, float) or math.isfinite(v) for v in again.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_number_is_refused_or_obeyed_at_once(kind: type[Common]) -> None:
    good = dict(told(kind, **kind.message.example).config())
    for key in (k for k, v in good.items() if type(v) is int and k not in LONG):
        ask(kind, ConfigRecord({**good, key: 2**63 - 1}))


def test_every_setting_has_a_rule() -> None:
    def check(kind: type[Settings]) -> None:
        for spec in fields(kind):
            if "part" in spec.metadata:
                check(spec.metadata["part"])
            else:
                assert spec.metadata["rule"].words

    for kind in KINDS:
        check(kind)
