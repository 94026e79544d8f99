"""The trees of a model as plain data, whichever library grew them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import lightgbm
    import xgboost


class Unsupported(Exception):
    """A model with something that a Forest can't say; the library itself must explain it."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Nodes by number, the root is 0. At a split, ``x < threshold`` goes left, all in float32.

    A leaf has ``left`` -1. ``missing_left`` is where NaN goes. ``cover`` is the weight of the
    training rows that reached a node, in the library's own measure.
    """

    feature: list[int] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    missing_left: list[bool] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    cover: list[float] = field(default_factory=list)

    @property
    def splits(self) -> Iterator[int]:
        """The nodes that are no leaves."""
        return (node for node, child in enumerate(self.left) if child >= 0)


def of_xgboost(booster: xgboost.Booster) -> list[Tree]:
    """All rounds of a booster, as ``Booster.predict`` uses them; raises Unsupported."""
    learner = json.loads(booster.save_raw("json"))["learner"]
    grown = learner["gradient_booster"]
    if grown["name"] != "gbtree":
        raise Unsupported(f"the booster is {grown['name']}")
    about = learner["learner_model_param"]
    if int(about["num_class"]) > 1 or int(about.get("num_target", 1)) > 1:
        raise Unsupported("the model has several outputs")
    return [_of_xgboost(tree) for tree in grown["model"]["trees"]]


def _of_xgboost(tree: dict[str, Any]) -> Tree:
    if any(tree["split_type"]):
        raise Unsupported("the model has categorical splits")
    # The C++ side has float32 numbers; JSON shows them with as many digits as tell them apart.
    conditions = np.array(tree["split_conditions"], np.float32).astype(float).tolist()
    return _checked(
        Tree(
            tree["split_indices"],
            conditions,
            [bool(d) for d in tree["default_left"]],
            tree["left_children"],
            tree["right_children"],
            conditions,
            tree["sum_hessian"],
        )
    )


def of_lightgbm(booster: lightgbm.Booster) -> list[Tree]:
    """All trees of a booster that was loaded from text; raises Unsupported."""
    model = booster.dump_model()
    if model["num_tree_per_iteration"] != 1:
        raise Unsupported("the model has several outputs")
    if model["average_output"]:
        raise Unsupported("the trees are averaged")
    return [_of_lightgbm(info["tree_structure"]) for info in model["tree_info"]]


def _of_lightgbm(root: dict[str, Any]) -> Tree:
    tree = Tree()

    def take(node: dict[str, Any]) -> int:
        number = len(tree.left)
        split = "split_index" in node
        tree.feature.append(node["split_feature"] if split else 0)
        tree.threshold.append(_below(node) if split else 0.0)
        tree.missing_left.append(_missing_left(node) if split else False)
        tree.value.append(0.0 if split else node["leaf_value"])
        tree.cover.append(
            node["internal_count" if split else "leaf_count"] if split or number else 1
        )
        tree.left.append(-1)
        tree.right.append(-1)
        if split:
            tree.left[number] = take(node["left_child"])
            tree.right[number] = take(node["right_child"])
        return number

    take(root)
    return _checked(tree)


def _below(node: dict[str, Any]) -> float:
    """The float32 under which exactly the float32 values lie that are ``<=`` a float64 limit."""
    if node["decision_type"] != "<=":
        raise Unsupported("the model has categorical splits")
    with np.errstate(over="ignore"):  # what only parts NaN from the rest is beyond float32
        limit = np.float32(node["threshold"])
        if float(limit) > node["threshold"]:
            limit = np.nextafter(limit, np.float32(-np.inf))
        return float(np.nextafter(limit, np.float32(np.inf)))


def _missing_left(node: dict[str, Any]) -> bool:
    match node["missing_type"]:
        case "NaN":
            return bool(node["default_left"])
        case "None":  # NaN counts as 0 where training saw none
            return bool(node["threshold"] >= 0.0)
        case other:
            raise Unsupported(f"the model takes {other} for missing")


def _checked(tree: Tree) -> Tree:
    if any(math.isnan(tree.threshold[node]) for node in tree.splits):
        raise Unsupported("a threshold is no number")
    if len(tree.left) > 1 and not all(0.0 < c < math.inf for c in tree.cover):
        raise Unsupported("a node has no cover")
    return tree
