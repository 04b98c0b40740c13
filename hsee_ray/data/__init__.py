"""Images: from their sources to one mapped uint8 file per split, and from there to every client's share.

Nothing here imports torch; what turns images into batches of a step is in `hsee_ray.data.batches`.
"""

from hsee_ray.data.cache import DatasetFiles, prepare
from hsee_ray.data.images import ImageSet, channel_statistics, open_images
from hsee_ray.data.known import known_classes, known_shape, known_train_images
from hsee_ray.data.partition import ClientIndices, class_counts, partition, select
from hsee_ray.data.sources import is_there

__all__ = [
    "ClientIndices",
    "DatasetFiles",
    "ImageSet",
    "channel_statistics",
    "class_counts",
    "is_there",
    "known_classes",
    "known_shape",
    "known_train_images",
    "open_images",
    "partition",
    "prepare",
    "select",
]
