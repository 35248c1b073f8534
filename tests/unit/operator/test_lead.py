"""Who leads: the election as a state machine. Times are seconds of a clock that the test holds."""

from __future__ import annotations

from sluice_operator.lead import DEADLINE, FREE, LONGEST_TERM, TERM, Election, Record


def held(holder: str, version: str = "1", term: int = TERM) -> Record:
    return Record(holder, term, 0, "", version)


def leader(began: float = 0.0) -> Election:
    """`a`, who has written the Lease by a call that began then."""
    election = Election("a")
    election.saw(FREE, began)
    election.renewed(held("a"), began)
    return election


def test_nobody_claims_a_lease_that_was_not_read() -> None:
    assert not Election("a").may_claim(1000.0)


def test_a_lease_that_is_not_there_may_be_claimed() -> None:
    election = Election("a")
    election.saw(FREE, 0.0)
    assert election.may_claim(0.0)
    assert not election.leads(0.0)


def test_a_lease_that_was_released_may_be_claimed_at_once() -> None:
    election = Election("a")
    election.saw(held("", term=1), 0.0)
    assert election.may_claim(0.0)


def test_a_lease_of_another_may_be_claimed_once_no_renewal_was_seen_for_its_term() -> None:
    election = Election("a")
    election.saw(held("b"), 5.0)
    assert [election.may_claim(at) for at in (5.0, 5.0 + TERM - 0.001, 5.0 + TERM)] == [False, False, True]


def test_a_renewal_that_is_seen_begins_the_term_anew() -> None:
    election = Election("a")
    election.saw(held("b", "1"), 0.0)
    election.saw(held("b", "2"), 14.0)
    election.saw(held("b", "2"), 20.0)
    assert [election.may_claim(at) for at in (28.9, 29.0)] == [False, True]


def test_a_lease_that_claims_days_keeps_nobody_away_for_days() -> None:
    election = Election("a")
    election.saw(held("b", term=10**9), 0.0)
    assert election.may_claim(float(LONGEST_TERM))


def test_a_lease_that_claims_less_than_a_leader_keeps_is_kept_all_the_same() -> None:
    election = Election("a")
    election.saw(held("b", term=1), 0.0)
    assert not election.may_claim(DEADLINE)


def test_a_leader_leads_until_its_deadline_counted_from_when_its_renewal_began() -> None:
    election = leader(began=3.0)
    assert [election.leads(at) for at in (3.0, 3.0 + DEADLINE - 0.001, 3.0 + DEADLINE)] == [True, True, False]


def test_a_leader_stops_well_before_another_may_start() -> None:
    election, follower = leader(began=0.0), Election("b")
    follower.saw(held("a"), 0.0)  # the earliest that it can have been seen
    stops = next(at for at in range(60) if not election.leads(float(at)))
    starts = next(at for at in range(60) if follower.may_claim(float(at)))
    assert (stops, starts) == (10, 15)


def test_a_leader_that_sees_another_in_its_place_stops_at_once() -> None:
    election = leader()
    election.saw(held("b", "2"), 1.0)
    assert not election.leads(1.0)


def test_a_conflict_costs_a_leader_nothing_that_it_has_won() -> None:
    election = leader()
    election.forget()
    assert election.leads(1.0)
    assert not election.may_claim(1.0)


def test_a_leader_that_released_leads_no_more() -> None:
    election = leader()
    election.release()
    assert not election.leads(0.1)


def test_a_lease_in_its_own_name_may_be_claimed_again() -> None:
    election = Election("a")
    election.saw(held("a"), 0.0)
    assert election.may_claim(0.0)
    assert not election.leads(0.0)
