"""What is remembered of objects, and how much of it."""

from __future__ import annotations

import pytest

from helpers.namespace import Namespace, entry, limits_object
from sluice_operator.planning import forms


def test_results_are_kept_by_the_size_of_their_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "KEPT", 30)
    monkeypatch.setattr(forms, "LARGEST_KEPT", 20)
    made: list[str] = []
    kept = forms.Kept(made.append)

    for text in ("a" * 10, "b" * 10, "c" * 21, "a" * 10, "d" * 20, "a" * 10, "c" * 21, "b" * 10):
        kept(text)

    assert [text[0] for text in made] == ["a", "b", "c", "d", "c", "b"]


def test_a_text_is_read_once_however_many_objects_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    rivals = [limits_object(f"rival-{number}", entry(match={"subjects": ["me"]}), created=1) for number in range(9)]
    named = [str(each["metadata"]["uid"]) for each in rivals]
    namespace = Namespace(limits_object("a", entry(match={"subjects": ["me", *named]})), *rivals)
    namespace.round()
    read: list[str] = []

    def note(text: str) -> tuple[forms.Form, ...]:
        read.append(text)
        return ()

    monkeypatch.setattr(forms, "_written_once", note)

    namespace.round()

    assert len(read) == 1


def test_rivals_by_the_hundred_are_not_all_read(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = [limits_object(f"o{number}", entry(number), created=number) for number in range(4)]
    namespace = Namespace(objects[0])
    namespace.round()
    monkeypatch.setattr("sluice_operator.planning.standing.MOST_READ", 2 * forms.size_of(objects[0]))
    namespace.objects |= {each["metadata"]["name"]: each for each in objects}

    namespace.round()

    assert [namespace.verdict(f"o{number}")[1] for number in range(4)] == ["Accepted", "Conflicted", "NoRoom", "NoRoom"]


def test_what_is_in_force_stays_so_when_there_is_too_much_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = Namespace(limits_object("o", entry()))
    namespace.round()
    text = namespace.text
    monkeypatch.setattr("sluice_operator.planning.standing.MOST_READ", 0)

    namespace.round()

    assert namespace.verdict("o") == ("False", "NoRoom")
    assert namespace.text == text
