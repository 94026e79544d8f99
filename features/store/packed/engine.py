"""Feast's local compute engine, whose last step writes Arrow columns instead of Protobuf rows."""

from __future__ import annotations

from typing import Any

from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.dag.context import ExecutionContext
from feast.infra.compute_engines.local.arrow_table_value import ArrowTableValue
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.feature_builder import LocalFeatureBuilder
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.compute_engines.local.nodes import LocalOutputNode
from feast.infra.registry.base_registry import BaseRegistry


class PackedOutputNode(LocalOutputNode):
    """Writes the result of a materialisation."""

    def execute(self, context: ExecutionContext) -> ArrowTableValue:
        """Write the rows online, and offline where the view wants it."""
        view: Any = self.feature_view
        online: Any = context.online_store
        rows = self.get_single_table(context).data
        output = ArrowTableValue(data=rows)
        context.node_outputs[self.name] = output
        if rows.num_rows and view.online:
            online.write_table(context.repo_config, view, rows)
        if rows.num_rows and view.offline:
            context.offline_store.offline_write_batch(
                config=context.repo_config, feature_view=view, table=rows, progress=lambda _: None
            )
        return output


class PackedBuilder(LocalFeatureBuilder):
    """Feast's plan with our last step."""

    def build_output_nodes(self, view: Any, input_node: Any) -> PackedOutputNode:
        """The step that writes."""
        root: Any = self.dag_root.view
        node = PackedOutputNode("output", root, inputs=[input_node])
        self.nodes.append(node)
        return node


class PackedComputeEngine(LocalComputeEngine):
    """What `feast materialize` runs on."""

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        name = f"{task.feature_view.name}-{task.start_time}-{task.end_time}"
        context = self.get_execution_context(registry, task)
        try:
            builder = PackedBuilder(registry, task, backend=self._get_backend(context))
            builder.build().execute(context)
        except Exception as e:  # noqa: BLE001 -- a job holds its error; the provider raises it
            return LocalMaterializationJob(name, MaterializationJobStatus.ERROR, error=e)
        return LocalMaterializationJob(name, MaterializationJobStatus.SUCCEEDED)
