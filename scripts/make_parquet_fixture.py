"""Writes tests/fixtures/chats.parquet: two rows of `messages`, as `datasets` stores them (pip install pyarrow)."""

import os

import pyarrow as pa
import pyarrow.parquet as pq

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "fixtures", "chats.parquet")


def turns(question, answer):
    return [{"content": question, "role": "user"}, {"content": answer, "role": "assistant"}]


table = pa.table({"messages": [turns("Hello 🙂", "Hi there"), turns("cats?", "3 cats")], "source": ["made", None]})
pq.write_table(table, OUT, compression="snappy", store_schema=False)
print(os.path.getsize(OUT), "bytes")
