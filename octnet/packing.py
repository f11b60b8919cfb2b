"""Packing: a folder of images into shards, once; resumable, and the same bytes whatever the number of processes."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import CancelledError, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from rich.progress import Progress

from octnet.options import UserError
from octnet.packed import INDEX, Pack, Split, load_pack, save_pack, shard_path
from octnet.readers import FolderImages, check_same_classes
from octnet.run import held
from octnet.shard import CHROMA, ENCODER, Shard, write_shard

SPLITS = ("train", "val")
MOST_SHARDS = 256  # of a split: each is an open file in every loader process
FEWEST_IMAGES = 256  # in a shard: what one process writes at a time, and all that an interruption loses

_shared: list[Any] = []  # in a packing process: the count of images and the event that stops it


def pack_folder(
    source: str, output: str, short_side_px: int, quality: int, processes: int, progress: Progress
) -> tuple[int, int]:
    """Pack train/ and val/ of `source`; what a pack with the same settings in `output` has is kept.

    Returns the number of images and of bytes. Raises UserError: folders, other settings, disk, unreadable images.
    """
    images = {split: FolderImages(source, split, "SOURCE") for split in SPLITS}
    check_same_classes(f"SOURCE={source}", images["train"].classes, images["val"].classes)
    settings = {
        "files_digest": "-".join(split.digest for split in images.values()),
        "short_side_px": short_side_px,
        "quality": quality,
        "chroma": CHROMA,
        "filter": "bilinear",
        "encoder": ENCODER,
    }
    pack = Pack(settings, images["train"].classes, {name: _plan(split) for name, split in images.items()})
    with _opened(output, pack):
        shards = {name: list(_shards(images[name], pack.splits[name], output, name, settings)) for name in SPLITS}
        _write_all([shard for split in shards.values() for shard in split], processes, progress)
        for name, split in shards.items():
            facts = [fact for shard in split if (fact := shard.whole()) is not None]
            pack.splits[name].shard_bytes = [size for size, _ in facts]
            pack.splits[name].shard_sha256 = [checksum for _, checksum in facts]
        save_pack(pack, output)
    return sum(map(len, images.values())), sum(sum(split.shard_bytes) for split in pack.splits.values())


def _plan(images: FolderImages) -> Split:
    """Return how a split is cut, by the number of its images alone."""
    per_class = np.bincount(images.labels, minlength=len(images.classes)).tolist()
    return Split(per_class, max(FEWEST_IMAGES, -(-len(images) // MOST_SHARDS)), [], [])


def _shards(images: FolderImages, split: Split, output: str, name: str, settings: dict[str, Any]) -> Iterator[Shard]:
    for number, first in enumerate(range(0, len(images), split.images_per_shard)):
        files = images.files[first : first + split.images_per_shard]
        path = shard_path(output, name, number)
        yield Shard(path, images.folder, files, settings["short_side_px"], settings["quality"])


@contextmanager
def _opened(output: str, pack: Pack) -> Iterator[None]:
    """Hold the output folder, with a pack.json of these settings. Raises UserError: other settings, other files, disk."""
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        foreign = [entry.name for entry in os.scandir(folder) if not entry.name.startswith((".", INDEX))]
        if foreign and not (folder / INDEX).exists():
            raise UserError(f"OUTPUT={output}: holds {sorted(foreign)[0]} and no {INDEX}; give a new or empty folder")
        with held(folder, ".lock"):
            if (folder / INDEX).exists():
                _check_same_settings(output, load_pack(output).settings, pack.settings)
            else:
                save_pack(pack, output)
            for split in SPLITS:
                (folder / split).mkdir(exist_ok=True)
            yield
    except OSError as error:
        raise UserError(f"OUTPUT={output}: cannot be written: {error.strerror}; what is written is kept") from error


def _check_same_settings(output: str, there: dict[str, Any], here: dict[str, Any]) -> None:
    differing = [f"{key} {there.get(key)}, now {value}" for key, value in here.items() if there.get(key) != value]
    if differing:
        raise UserError(f"OUTPUT={output}: holds a pack with {'; '.join(differing)}; give another OUTPUT")


def _write_all(shards: list[Shard], processes: int, progress: Progress) -> None:
    """Write the shards that aren't there. Raises UserError for an unreadable image after all others are written."""
    missing = [shard for shard in shards if shard.whole() is None]
    total = sum(len(shard.files) for shard in shards)
    before = total - sum(len(shard.files) for shard in missing)
    bar = progress.add_task("packing", total=total, completed=before)
    unreadable = []
    context = multiprocessing.get_context("forkserver")  # not fork: the progress bar has a thread
    context.set_forkserver_preload([__name__])
    done, stop = context.Value("q"), context.Event()
    with ProcessPoolExecutor(processes, context, _begin, (done, stop)) as pool:
        try:
            waiting = {pool.submit(_write_in_process, shard) for shard in missing}
            while waiting:
                ended, waiting = wait(waiting, timeout=0.2)
                progress.update(bar, completed=before + done.value)
                for future in ended:
                    error = future.exception()
                    if isinstance(error, UserError):
                        unreadable.append(error)
                    elif error is not None:
                        raise error
        except BrokenProcessPool as error:
            raise UserError(
                "a packing process was killed, which happens when memory runs out; --processes fewer?"
            ) from error
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    if unreadable:
        more = f" (and {len(unreadable) - 1} other shards have one)" if len(unreadable) > 1 else ""
        raise UserError(f"{unreadable[0]}{more}; put a good file in its place and run the same command again")


def _begin(done: Any, stop: Any) -> None:
    """Prepare a packing process: Ctrl-C is the parent's to answer, and the parent's end is this process's too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _shared.extend((done, stop))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    Thread(target=follow, daemon=True).start()


def _write_in_process(shard: Shard) -> None:
    done, stop = _shared

    def count() -> None:
        if stop.is_set():
            raise CancelledError
        with done.get_lock():
            done.value += 1

    write_shard(shard, count)
