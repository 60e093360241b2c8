"""What is not read, and how to bring it in: one sentence for each kind of file that people have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rql_deploy.errors import UserError
from rql_deploy.folders import near_paths
from rql_deploy.ogbench_names import download_hint

OWN_ROWS = (
    "write its rows as an .hdf5 file with observations, actions, rewards, terminals and timeouts, or with "
    "StoreWriter (docs/data.md)"
)
PICKLE = (
    "a pickle, which runs code when it is opened and so is never read: load it where you trust it, then "
    f"{OWN_ROWS}"
)
BAG = (
    "a ROS bag that is not MCAP: run `mcap convert {name} {stem}.mcap` (https://mcap.dev/guides/cli), then "
    "pass that"
)
RLDS = (
    "a data set of TensorFlow (RLDS), which is not read: convert it to a LeRobotDataset, as openpi's "
    "examples/libero/convert_libero_data_to_lerobot.py does, then pass that"
)
ALOHA = (
    "one episode of ALOHA or ACT, which is not read: convert the folder of episodes to a LeRobotDataset, as "
    "openpi's examples/aloha_real/convert_aloha_data_to_lerobot.py does, then pass that"
)
TABLE = f"a table of text: {OWN_ROWS}"
ARCHIVE = "an archive: unpack it and pass what was in it"
KINDS: Mapping[str, str] = {
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".joblib"), PICKLE),
    **dict.fromkeys((".db3", ".bag"), BAG),
    **dict.fromkeys((".tfrecord", ".tfrecords"), RLDS),
    **dict.fromkeys((".csv", ".tsv", ".json", ".jsonl"), TABLE),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst"), ARCHIVE),
    ".parquet": "a part of a LeRobotDataset or Minari data set: pass the data set's folder",
    ".arrow": "a part of a Minari data set: pass the data set's folder",
    ".npy": f"one array: {OWN_ROWS}",
    ".mat": f"a file of MATLAB: {OWN_ROWS}",
}
READ = "store.json, .npz, .hdf5, meta/info.json of LeRobot, zarr, .mcap, and what Minari wrote"


def refuse_file(path: Path) -> UserError:
    """The error for a file of a kind that is not read."""
    known = KINDS.get(path.suffix.lower()) or (RLDS if ".tfrecord" in path.name else "")
    if known:
        return UserError(f"{path} is {known.format(name=path.name, stem=path.stem)}")
    return UserError(f"{path} is a file of a kind that is not read ({READ} are): {OWN_ROWS}")


def refuse_folder(path: Path) -> UserError:
    """The error for a folder that holds no data set."""
    if (path / "features.json").is_file() or next(path.glob("**/*.tfrecord*"), None) is not None:
        return UserError(f"{path} is {RLDS}")
    hdf5 = sorted(file.name for suffix in ("*.hdf5", "*.h5") for file in path.glob(suffix))
    if hdf5:
        return UserError(
            f"{path} holds {len(hdf5)} HDF5 files, which are data sets of their own: pass {hdf5[0]}"
        )
    for file in sorted(path.iterdir()):
        if (kind := KINDS.get(file.suffix.lower())) in (PICKLE, BAG):
            return UserError(f"{path} holds {file.name}, {kind.format(name=file.name, stem=file.stem)}")
    return UserError(
        f"{path} holds no data set: there is no store.json, no .npz file, no meta/info.json, no zarr store, "
        "no MCAP log and nothing that Minari wrote in it"
    )


def missing(name: str, format_name: str) -> UserError:
    """The error for a file that does not exist."""
    hint = f"{near_paths(name)}{download_hint(Path(name).name)}"
    return UserError(f"there is no file {name}: pass {format_name}{hint}")
