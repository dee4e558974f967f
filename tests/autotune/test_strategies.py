"""Every strategy on made-up spaces: within its budget, repeatable, not stopped by failures."""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import replace

import numpy as np
import pytest

from autotune.strategies import DEFAULT, STRATEGIES
from autotune.strategies.common import SearchSpace, Trials, search
from tests.autotune.made_up_spaces import deceptive_switches, powers_of_two

ALONE = sorted(STRATEGIES.keys() - {"ranked", "corrected"})  # those that need no model


def tiles() -> tuple[SearchSpace, np.ndarray]:  # type: ignore[type-arg]
    """Like a kernel's: factors, a switch, an axis that does not vary, a third that fails."""
    axes = [[16, 32, 64, 128, 256], [16, 32, 64, 128, 256], [1, 2, 3, 4], [0, 1], [7]]
    values = np.array(list(itertools.product(*axes)), dtype=float)
    m, n, stages, switch, _ = values.T
    times = (np.log2(m / 64) ** 2 + np.log2(n / m) ** 2 + (stages - 3) ** 2 + 2 * switch + 5) / 5
    times[m * n * stages > 40_000] = np.nan
    return SearchSpace(("m", "n", "stages", "switch", "one"), values), times


SPACE, TIMES = tiles()


def run(name: str, budget: int, seed: int = 0, times: np.ndarray = TIMES) -> Trials:  # type: ignore[type-arg]
    return search(STRATEGIES[name], SPACE, lambda places: times[places].tolist(), budget, seed)


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("budget", [0, 1, 7, 30])
def test_the_budget_is_spent_on_distinct_configurations(name: str, budget: int) -> None:
    trials = run(name, budget)
    assert len(trials.order) == len(set(trials.order)) == budget
    np.testing.assert_array_equal(trials.times, TIMES[trials.order])


@pytest.mark.parametrize("name", ALONE)
def test_the_same_seed_tries_the_same(name: str) -> None:
    assert run(name, 20, seed=3).order == run(name, 20, seed=3).order
    if name != "exhaustive":
        assert run(name, 20, seed=3).order != run(name, 20, seed=4).order


@pytest.mark.parametrize("name", ALONE)
def test_more_than_the_space_finds_the_optimum(name: str) -> None:
    part = SearchSpace(SPACE.names, SPACE.values[::3])
    trials = search(STRATEGIES[name], part, lambda places: TIMES[::3][places].tolist(), 10_000, 0)
    assert sorted(trials.order) == list(range(len(part)))
    assert np.nanmin(trials.times) == np.nanmin(TIMES[::3])


@pytest.mark.parametrize("name", ALONE)
def test_failures_alone_do_not_end_a_search(name: str) -> None:
    assert len(run(name, 40, times=np.full(len(SPACE), np.nan)).order) == 40


@pytest.mark.parametrize("name", ALONE)
def test_a_space_of_one(name: str) -> None:
    space = SearchSpace(("a", "b"), np.array([[1.0, 2.0]]))
    trials = search(STRATEGIES[name], space, lambda places: [1.0], 5, seed=0)
    assert trials.order == [0]


def test_learning_beats_chance() -> None:
    def mean_best(strategy: str) -> float:
        return float(np.mean([np.nanmin(run(strategy, 25, seed).times) for seed in range(8)]))

    assert mean_best("combined") < mean_best("random") - 0.03


def mean_shares(space: SearchSpace, times: np.ndarray, counts: tuple[int, ...]) -> list[float]:  # type: ignore[type-arg]
    """Mean share of the optimum of six runs of the default after each number of trials."""

    def shares(seed: int) -> list[float]:
        strategy = STRATEGIES[DEFAULT]
        found = search(strategy, space, lambda p: times[p].tolist(), counts[-1], seed).times
        return [float(np.nanmin(times) / np.nanmin(found[:count])) for count in counts]

    return np.mean([shares(seed) for seed in range(6)], axis=0).tolist()  # type: ignore[no-any-return]


# Random configurations reach 0.55 after 15 and 0.75 after 40 on the first space, 0.66 after 25 on
# the second. A default that only explores misses all three thresholds, one that only exploits the
# last.
def test_the_default_finds_sizes_that_are_powers_of_two() -> None:
    after_15, after_40 = mean_shares(*powers_of_two(), (15, 40))
    assert after_15 > 0.80
    assert after_40 > 0.95


def test_the_default_is_not_caught_where_switches_deceive() -> None:
    (after_25,) = mean_shares(*deceptive_switches(), (25,))
    assert after_25 > 0.72


def test_random_draws_favour_sizes_near_powers_of_two() -> None:
    space = SearchSpace(("size", "few"), np.array([[n, n % 2] for n in range(16, 257, 16)], float))
    assert space.oddness[[0, 1, 2, 4]] == pytest.approx(np.log2([1, 1, 3, 5]))
    first = [search(STRATEGIES[DEFAULT], space, lambda p: [1.0] * len(p), 1, seed).order[0]
             for seed in range(60)]  # fmt: skip
    assert np.mean(space.oddness[first] == 0) > 0.5 > np.mean(space.oddness == 0)


def test_a_space_of_odd_sizes_is_searched_to_its_end() -> None:
    """The least likely draws keep a chance that does not vanish in float64."""
    values = np.array([[2.0**49 + 2 * n + 1] * 20 for n in range(30)])
    space = SearchSpace(tuple(map(str, range(20))), values)
    found = search(STRATEGIES[DEFAULT], space, lambda p: [1.0] * len(p), 100, 0)
    assert sorted(found.order) == list(range(30))


def known(error: float, seed: int = 0) -> SearchSpace:
    """The space with a model's figures, off by chance and by a factor for each m."""
    generator = np.random.default_rng(seed)
    by_m = dict(zip(np.unique(SPACE.values[:, 0]), generator.normal(0, error, 5), strict=True))
    factors = np.array([by_m[m] for m in SPACE.values[:, 0]])
    logs = np.log(np.where(np.isnan(TIMES), 3.0, TIMES)) + factors
    predicted = 7 * np.exp(logs + generator.normal(0, error / 5, len(SPACE)))
    order = tuple(np.argsort(predicted)[:8].tolist())
    return SearchSpace(SPACE.names, SPACE.values, order, predicted)


def told(places: list[int]) -> list[float]:
    return TIMES[places].tolist()  # type: ignore[no-any-return]


def test_ranked_follows_the_model() -> None:
    with pytest.raises(ValueError, match="follows a model's order"):
        run("ranked", 3)
    space = SearchSpace(SPACE.names, SPACE.values, order=(9, 4, 2))
    assert search(STRATEGIES["ranked"], space, lambda p: [1.0] * len(p), 8, 0).order == [9, 4, 2]


def test_corrected_begins_as_the_model_says_and_learns_where_it_errs() -> None:
    with pytest.raises(ValueError, match="corrects a model's figures"):
        run("corrected", 3)
    shares = {"corrected": [], "combined": [], "ranked": []}  # type: ignore[var-annotated]
    for seed in range(8):
        space = known(0.4, seed)
        for name in ("corrected", "combined", "ranked"):
            found = search(STRATEGIES[name], space, told, 16, seed)
            shares[name].append(np.nanmin(found.times))
            assert found.order[:6] == list(space.order or ())[:6]
    assert shares["combined"] == shares["corrected"]  # where a model knows the kernel
    mean = {name: np.mean(times) for name, times in shares.items()}
    assert mean["corrected"] < mean["ranked"] - 0.02


def test_corrected_spends_a_space_whose_model_knows_little() -> None:
    space = known(0.4)
    assert space.predicted is not None
    space.predicted[::3] = np.inf
    space = replace(space, order=tuple(np.argsort(space.predicted)[:8].tolist()))
    everything = search(STRATEGIES["corrected"], space, told, 10_000, 0)
    assert sorted(everything.order) == list(range(len(SPACE)))
    failing = search(STRATEGIES["corrected"], space, lambda p: [np.nan] * len(p), 30, 0)
    assert len(failing.order) == 30
    # What the model holds for impossible comes last.
    assert np.isfinite(space.predicted[everything.order[:100]]).all()


def test_without_scikit_learn_the_model_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = run("combined", 20).order
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run("combined", 20).order == alone  # where no model knows the kernel: numpy is enough
    space = known(0.4)
    with pytest.warns(UserWarning, match=r"pip install 'tconv\[search\]'"):
        found = search(STRATEGIES["combined"], space, told, 8, 0)
    assert tuple(found.order) == space.order


def test_a_configuration_asked_for_again_costs_nothing() -> None:
    asked: list[int] = []
    trials = Trials(lambda places: [asked.append(place) or 1.0 for place in places], budget=3)  # type: ignore[func-returns-value]
    trials([5, 5, 6])
    trials([6, 5, 7])
    assert asked == [5, 6, 7]
