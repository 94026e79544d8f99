"""Spark in a process of its own: sliding windows from Parquet to Parquet, on demand.

``python -m benchmarks.peers.spark_process EVENTS OUT SPEC``: SPEC is JSON with ``entities``,
``spans`` (seconds) and ``cores``. Prints "ready"; then each line on stdin is one computation,
answered by one line; ends with its stdin. Needs PySpark and Java, which raypipe itself doesn't.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def compute(spark: Any, events: str, out: Path, entities: list[str], spans: list[int]) -> None:
    """One Parquet folder per entity: offset, and count, sum, mean, min, max, std of each span."""
    from pyspark.sql import Window
    from pyspark.sql import functions as f

    frame = spark.read.parquet(events)
    amount = f.col("amount")
    for entity in entities:
        columns = [f.col("offset")]
        for i, span in enumerate(spans):
            window = (
                Window.partitionBy(f"{entity}_id")
                .orderBy("event_time")
                .rangeBetween(-(span * 1_000 - 1), 0)
            )
            columns += [
                f.count(f.lit(1)).over(window).alias(f"count_{i}"),
                f.sum(amount).over(window).alias(f"sum_{i}"),
                f.avg(amount).over(window).alias(f"mean_{i}"),
                f.min(amount).over(window).alias(f"min_{i}"),
                f.max(amount).over(window).alias(f"max_{i}"),
                f.stddev_pop(amount).over(window).alias(f"std_{i}"),
            ]
        frame.select(columns).write.mode("overwrite").parquet(str(out / entity))


def main(events: str, out: Path, spec: dict[str, Any]) -> None:
    """Serve computations until stdin ends."""
    from pyspark.sql import SparkSession

    cores = int(spec["cores"])
    spark = (
        SparkSession.builder.master(f"local[{cores}]")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "6g")
        # As many as the cores can use: the default of 200 is for clusters.
        .config("spark.sql.shuffle.partitions", str(2 * cores))
        .config("spark.sql.parquet.compression.codec", "lz4")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        compute(spark, events, out, spec["entities"], spec["spans"])
        sys.stdout.write("done\n")
        sys.stdout.flush()
    spark.stop()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
