"""What Ray itself says of a cluster file, and which images it would choose: without a cloud.

Both read Ray's private parts (2.60): ``ray up`` offers no dry run.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raypipe.errors import Unavailable
from raypipe.runtime.launch.node import Finding, Node, escape

_CURE = "Correct it; Ray's reference of this file: docs.ray.io, cluster YAML configuration options."
_IMAGES = "autoscaler/_private/aws/config.py"


def ray_findings(cluster: Node) -> Iterator[Finding]:
    """The first rule of Ray's own schema that the file breaks.

    The schema covers names and types outside ``provider`` and ``node_config``.
    """
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = copy.deepcopy(cluster.value)
    if not isinstance(config.get("provider"), dict):
        yield cluster["provider"].wrong("a mapping with a type", _CURE)
        return
    if isinstance(config.get("file_mounts"), dict):
        config["file_mounts"] = {}  # Ray logs a warning for each file; it checks no more of them
    try:
        validate_config(prepare_config(config))
    except jsonschema.ValidationError as e:
        place = "".join(f"/{escape(str(step))}" for step in e.absolute_path)
        message = e.message if len(e.message) <= 300 else f"{e.message[:297]}..."
        yield Finding(cluster.file, place or "/", message, "what Ray's schema allows", _CURE)
    except (ValueError, RuntimeError) as e:
        yield cluster.wrong("what Ray accepts", _CURE, str(e))
    except (KeyError, TypeError, AttributeError, AssertionError, NotImplementedError) as e:
        found = f"Ray can't read it: {type(e).__name__}: {e}"
        yield cluster.wrong("what Ray accepts", _CURE, found)


def regions_with_image() -> tuple[str, ...]:
    """Regions for which Ray has an image of its own, when a node type names none.

    Read out of Ray's source: importing it needs boto3. Raises Unavailable when Ray has moved it.
    """
    spec = find_spec("ray")
    if spec is not None and spec.origin is not None:
        source = Path(spec.origin).parent / _IMAGES
        for statement in ast.parse(source.read_text("utf-8")).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == (
                "DEFAULT_AMI"
            ):
                return tuple(ast.literal_eval(statement.value))
    raise Unavailable(f"the installed Ray has no DEFAULT_AMI in {_IMAGES}", hint="Name an ImageId.")
