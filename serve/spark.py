r"""Relabelling on Spark: the columns of `jingyin relabel`, row for row the same.

    from jingyin.serve.spark import score_dataframe
    score_dataframe(spark.read.parquet("archive")).write.parquet("relabelled")

    python -m jingyin.serve.spark --master 'local[*]' INPUT OUTPUT

The workers need the packages that jingyin needs, and jingyin: installed, or its wheel as --py-files, with the bundle
in it. spark-submit wants a file:

    spark-submit --py-files jingyin-0.1.0-py3-none-any.whl \
        "$(python -c 'import jingyin.serve.spark as s; print(s.__file__)')" INPUT OUTPUT
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from jingyin.model.errors import ConfigError, InputError, JingyinError, need

need("relabelling on Spark", "spark", "pyarrow", "pyspark")

import pyarrow as pa  # noqa: E402  needs the extra checked above
from pyspark.sql.types import ArrayType, DoubleType, IntegerType, StringType, StructField, StructType  # noqa: E402

from jingyin.model.labels import LABELS  # noqa: E402
from jingyin.serve.archive.columns import NAMES, verdict_columns  # noqa: E402
from jingyin.serve.archive.readers import mended  # noqa: E402
from jingyin.serve.scorer import ScorerArguments, scorer_of  # noqa: E402

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_PROBABILITIES = StructType([StructField(label, DoubleType()) for label in LABELS])
_VERDICT = (StringType(), DoubleType(), StringType(), _PROBABILITIES, StringType(), StringType())
_TYPES = (*_VERDICT, IntegerType(), IntegerType(), DoubleType(), ArrayType(StringType()))
_SLICE = 4096


def score_dataframe(df: "DataFrame", text_column: str = "text", *, bundle: str | None = None) -> "DataFrame":
    """Return `df` with the columns `jingyin_*`, replacing existing ones; a null text gets nulls.

    Bytes that aren't UTF-8 stay, but are scored as U+FFFD.
    Each Python worker keeps one scorer between batches. `bundle` is a folder that every worker can read, by default the
    one in the package. Raises ConfigError if the column is missing or doesn't hold strings.
    """
    if text_column not in df.columns:
        raise ConfigError(f"the data frame has no column {text_column!r}; it has: {', '.join(df.columns)}")
    if not isinstance(df.schema[text_column].dataType, StringType):
        raise ConfigError(f"column {text_column!r} is {df.schema[text_column].dataType.simpleString()}, wanted string")
    own_columns = df.drop(*NAMES)
    schema = StructType([*own_columns.schema.fields, *map(StructField, NAMES, _TYPES)])

    def score(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        scorer = scorer_of(ScorerArguments(bundle))
        for batch in batches:
            for start in range(0, batch.num_rows, _SLICE):  # Spark's batches have 10,000 rows, whatever their size
                rows = batch.slice(start, _SLICE)
                columns = verdict_columns(scorer, mended(rows.column(text_column))[0].to_pylist())
                yield pa.record_batch([*rows.columns, *columns], [*rows.schema.names, *NAMES])

    return own_columns.mapInArrow(score, schema)


def main(arguments: list[str] | None = None) -> None:
    """Score INPUT into OUTPUT, which must not exist; the format is Parquet, or what --format says."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    parser = argparse.ArgumentParser(prog="python -m jingyin.serve.spark", description=main.__doc__)
    parser.add_argument("input", metavar="INPUT", nargs="+", help="what Spark can read: files, folders, globs, URLs")
    parser.add_argument("output", metavar="OUTPUT")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--bundle", help="a bundle folder that every worker sees; by default the one in the package")
    parser.add_argument("--format", default="parquet", choices=["parquet", "orc", "json"])
    parser.add_argument("--master", help="by default what spark-submit or Spark's configuration says")
    options = parser.parse_args(arguments)
    builder = SparkSession.builder.appName("jingyin relabel")
    session = None
    try:
        session = (builder.master(options.master) if options.master else builder).getOrCreate()  # starts Java
        df = session.read.format(options.format).load(options.input)
        scored = score_dataframe(df, options.text_column, bundle=options.bundle)
        scored.write.format(options.format).save(options.output)
    except PySparkException as error:
        raise InputError(f"Spark failed: {error.getCondition() or type(error).__name__}") from None
    except (Py4JError, ConnectionError) as error:  # its message could quote the data
        java = getattr(error, "java_exception", None)  # else the connection to Java broke
        name = java.getClass().getName() if java else type(error).__name__
        raise InputError(f"Spark failed: {name}; see Spark's log") from None
    finally:
        if session is not None:
            session.stop()


if __name__ == "__main__":
    # Functions of __main__ can't be found by the workers: call the module under its own name.
    from jingyin.serve import spark

    try:
        spark.main()
    except JingyinError as error:
        sys.exit(f"jingyin: {error}")
