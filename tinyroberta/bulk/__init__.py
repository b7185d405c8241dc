"""Vectors of tables of texts: of one Arrow table, of a stream of Arrow batches, and on a cluster of machines by Ray Data.

tables.py has tables and batches, and what is checked of them; cluster.py Ray's datasets; files.py Parquet files that a killed job
goes on with. Each row is kept, with one column more; a text that is null has a vector that is null. A vector is made of its own
text alone (tasks/embed.py), so its bits do not depend on how rows fall into files, blocks, batches and actors.
"""

from .cluster import embed
from .files import embed_files
from .tables import embed_batches, embed_table

__all__ = ["embed", "embed_batches", "embed_files", "embed_table"]
