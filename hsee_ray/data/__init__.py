"""Images: from their sources to one mapped uint8 file per split, and from there to every client's share.

Nothing here imports torch; what turns images into batches of a step is in `hsee_ray.data.batches`.
"""

from hsee_ray.data.cache import DatasetFiles, prepare
from hsee_ray.data.images import ImageSet, channel_statistics, open_images
from hsee_ray.data.partition import ClientIndices, class_counts, partition, select

__all__ = [
    "ClientIndices",
    "DatasetFiles",
    "ImageSet",
    "channel_statistics",
    "class_counts",
    "open_images",
    "partition",
    "prepare",
    "select",
]
