"""Campaigns on Spark: for each row the id of the campaign that `jingyin campaigns` finds, by the same rule (group.py).

    from jingyin.serve.spark import score_dataframe
    from jingyin.serve.campaigns.spark import group_dataframe
    group_dataframe(score_dataframe(df).where("jingyin_action <> 'pass'").persist())

Signatures are made where the rows are. Texts of one band key meet by a window instead of a sort, and the components of
what is alike are found by alternating stars (Kiveris et al. 2014), so no list of texts or pairs comes to the driver.
"""

from collections.abc import Iterable, Iterator
from functools import reduce
from typing import TYPE_CHECKING

from jingyin.serve.spark import check_text  # first: it says what is missing where there is no Spark, or no Arrow

# isort: split

import numpy as np
import pyarrow as pa

from jingyin.model.errors import ConfigError
from jingyin.model.text import clean
from jingyin.serve.campaigns.choose import key_of
from jingyin.serve.campaigns.group import AKIN, ALIKE
from jingyin.serve.campaigns.minhash import BANDS, HASHES, band_keys, signatures, similarity

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pyspark.sql import DataFrame

from pyspark.sql import Window
from pyspark.sql import functions as F  # noqa: N812  its name everywhere
from pyspark.sql.types import LongType, StructField, StructType

CAMPAIGN = "jingyin_campaign"
"""The column of ids, null for a row that is in no campaign."""
_KEY = "jingyin_key"
_LEAST = -(1 << 63)  # Spark's integers are signed: keys are moved down by so much, and keep their order

_Batches = Iterable[pa.RecordBatch]


def group_dataframe(df: "DataFrame", text_column: str = "text", *, min_rows: int = 2) -> "DataFrame":
    """Return `df` with the column `jingyin_campaign`, new or replaced: as campaigns() with `every` names them.

    Runs jobs until the groups are found; `df` is read there and once more when the result is, so persist what is dear
    to make. Raises ConfigError when there is no such column, or it holds no strings, or for `min_rows` below 1.
    """
    check_text(df, text_column)
    if min_rows < 1:
        raise ConfigError(f"a campaign of {min_rows} rows can't be; name a number from 1 on as min_rows")
    kept = df.drop(CAMPAIGN)
    names = kept.columns
    numbered = kept.toDF(*(f"column{i}" for i in range(len(names))))  # mapInArrow can't resolve a name with a dot
    numbered_text = f"column{names.index(text_column)}"

    def keys(batches: _Batches) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            texts = batch.column(numbered_text).to_pylist()
            found = [None if text is None else key_of(clean(text).text) + _LEAST for text in texts]
            column = pa.array(found, pa.int64())
            yield pa.record_batch([*batch.columns, column], [*batch.schema.names, _KEY])

    keyed = numbered.mapInArrow(keys, StructType([*numbered.schema.fields, StructField(_KEY, LongType())]))
    there = keyed.where(F.col(_KEY).isNotNull()).groupBy(F.col(_KEY).alias("key"))
    texts = there.agg(F.count("*").alias("rows"), F.first(numbered_text).alias("text"))
    named = _named(_groups(texts.mapInArrow(_sign, "key long, rows long, signature binary")), min_rows)
    return keyed.join(named, _KEY, "left").drop(_KEY).toDF(*names, CAMPAIGN)


def _named(groups: "DataFrame", min_rows: int) -> "DataFrame":
    """Return for (key, rows, stands) the ids of the keys whose group has so many rows."""
    size = F.sum("rows").over(Window.partitionBy("stands"))
    large = groups.withColumn("size", size).where(F.col("size") >= min_rows)
    name = F.lower(F.lpad(F.hex(F.col("stands").bitwiseXOR(F.lit(_LEAST))), 16, "0"))
    return large.select(F.col("key").alias(_KEY), name.alias(CAMPAIGN))


def _groups(left: "DataFrame") -> "DataFrame":
    """Return for texts (key, rows, signature) the text that stands for each one's group: key, rows, stands."""
    done = []
    left = left.localCheckpoint()
    while not left.isEmpty():
        found = _chosen(left, _components(_alike(left))).localCheckpoint()
        done.append(found.where("akin").select("key", "rows", "stands"))
        left = found.where("not akin").select("key", "rows", "signature")
    return (
        reduce(lambda one, other: one.union(other), done) if done else left.selectExpr("key", "rows", "key as stands")
    )


def _alike(texts: "DataFrame") -> "DataFrame":
    """Return pairs (high, low) of texts alike that share a band key: each with the first of it and the one before."""
    banded = texts.select("key", "signature").mapInArrow(_bands, "band int, bucket long, key long")
    bucket = Window.partitionBy("band", "bucket").orderBy("key")
    met = banded.select("key", F.array(F.first("key").over(bucket), F.lag("key").over(bucket)).alias("met"))
    pairs = met.select(F.col("key").alias("high"), F.explode("met").alias("low")).where("low < high").distinct()
    for side in ("high", "low"):
        pairs = pairs.join(texts.selectExpr(f"key as {side}", f"signature as {side}_signature"), side)
    return pairs.mapInArrow(_only_alike, "high long, low long")


def _components(pairs: "DataFrame") -> "DataFrame":
    """Return, for each text in a pair (high, low), the lowest of its component: key, lowest; not for the lowest."""
    stars, known = pairs.localCheckpoint(), None
    while (now := stars.agg(F.count("*"), F.bit_xor(F.xxhash64("high", "low"))).first()) != known:
        known = now
        both = stars.union(stars.select("low", "high")).toDF("of", "to")
        least = F.least("of", F.min("to").over(Window.partitionBy("of")))
        large = both.withColumn("least", least).where("to > of").selectExpr("to as high", "least as low")
        small = large.withColumn("least", F.min("low").over(Window.partitionBy("high")))
        to_least = F.explode(F.array("high", "low"))
        stars = small.select(to_least.alias("high"), F.col("least").alias("low")).where("low < high").distinct()
        stars = stars.localCheckpoint()
    return stars.toDF("key", "lowest")


def _chosen(texts: "DataFrame", components: "DataFrame") -> "DataFrame":
    """Let the text of most rows stand for its component: key, rows, signature, stands, akin."""
    within = texts.join(components, "key", "left").withColumn("lowest", F.coalesce("lowest", "key"))
    first = F.min(F.struct(-F.col("rows"), "key", "signature"))
    chosen = within.groupBy("lowest").agg(first.alias("first"))
    chosen = chosen.selectExpr("lowest", "first.key as stands", "first.signature as chosen")
    columns = "key long, rows long, signature binary, stands long, akin boolean"
    return (
        within.join(chosen, "lowest").select("key", "rows", "signature", "stands", "chosen").mapInArrow(_akin, columns)
    )


def _sign(batches: _Batches) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        found = signatures([clean(text).text for text in batch.column("text").to_pylist()])
        column = pa.array([row.tobytes() for row in found], pa.binary())
        yield pa.record_batch([batch.column("key"), batch.column("rows"), column], ["key", "rows", "signature"])


def _bands(batches: _Batches) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        found = _signatures(batch.column("signature"))
        for band in range(BANDS):
            number, keys = pa.array(np.full(len(found), band, np.int32)), band_keys(found, band).view(np.int64)
            yield pa.record_batch([number, pa.array(keys), batch.column("key")], ["band", "bucket", "key"])


def _only_alike(batches: _Batches) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        near = _similarity(batch.column("high_signature"), batch.column("low_signature")) >= ALIKE
        yield batch.select(["high", "low"]).filter(pa.array(near))


def _akin(batches: _Batches) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        near = _similarity(batch.column("signature"), batch.column("chosen")) >= AKIN
        yield batch.drop_columns(["chosen"]).append_column("akin", pa.array(near))


def _similarity(one: pa.Array, other: pa.Array) -> "NDArray[np.float64]":
    count = len(one)
    numbers = np.arange(count, dtype=np.int32)
    return similarity(np.concatenate([_signatures(one), _signatures(other)]), numbers, numbers + np.int32(count))


def _signatures(column: pa.Array) -> "NDArray[np.uint16]":
    return np.frombuffer(b"".join(column.to_pylist()), np.uint16).reshape(-1, HASHES)
