"""Writes tests/fixtures/chats*.parquet: two rows of `messages`, as `datasets` stores them, in three codecs (pip install pyarrow)."""

import os

import pyarrow as pa
import pyarrow.parquet as pq

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "fixtures")


def turns(question, answer):
    return [{"content": question, "role": "user"}, {"content": answer, "role": "assistant"}]


table = pa.table({"messages": [turns("Hello 🙂", "Hi there"), turns("cats?", "3 cats")], "source": ["made", None]})
for codec, name in [("snappy", "chats"), ("zstd", "chats.zstd"), ("brotli", "chats.brotli")]:
    path = os.path.join(OUT, f"{name}.parquet")
    pq.write_table(table, path, compression=codec, store_schema=False)
    print(os.path.getsize(path), "bytes")
