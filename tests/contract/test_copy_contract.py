"""Images copied into every place and out of it again, as `planyard store copy` does it."""

from __future__ import annotations

import random
from pathlib import Path

from engines import index
from engines.keeping.copying import copy_images
from engines.lookup import lookup, pull
from engines.store.store import ObjectStore
from tests.channel_sites import small_image
from tests.object_places import MemoryStore, ObjectPlace

PLAN = random.Random(5).randbytes(3 << 20)
RELATIVE = PLAN[: 1 << 20] + b"other" + PLAN[(1 << 20) + 5 :]


def test_there_and_back(place: ObjectPlace, tmp_path: Path) -> None:
    source, far, back = MemoryStore(), ObjectStore(place.objects), MemoryStore()
    images = [
        small_image(source, name, plan=plan)[0]
        for name, plan in (("first", PLAN), ("second", RELATIVE))
    ]
    sent = copy_images(source, far)
    assert set(sent.images) == {image.digest for image in images}
    assert sent.left_out == ()
    assert len(PLAN) < sent.moved_bytes < len(PLAN) + (1 << 20)

    assert copy_images(source, far).moved_bytes == 0
    assert copy_images(ObjectStore(place.again()), back).left_out == ()
    for image, plan in zip(images, (PLAN, RELATIVE), strict=True):
        for store in (far, back):
            folder = tmp_path / store.url[:4] / image.name
            written = pull(store, lookup(store, image.digest), folder)
            assert [path.read_bytes() for path in written if path.suffix == ".plan"] == [plan]
            assert index.image_of_recipe(store, image.recipe) == image
