"""How well the cube's place can be learnt from frozen features: a map against pooled ones.

    python benchmarks/backbones.py [--frames 260] [FILE.onnx ...]

The cube of robosuite Lift is put at random within 5 cm, the arm is shaken a little, and both cameras are
rendered. The heads that training uses learn the cube's place from four fifths of the pictures and are
measured on the rest. Without FILE: EfficientNet-Lite0 as a map of stride 8 and pooled (extra `vision`).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from rql_deploy.export.backbone import Backbone
from rql_deploy.train.vision.heads import FrozenFeatures, make_head
from rql_deploy.workflows.backbone import check_backbone, make_backbone

CAMERAS = ("agentview", "robot0_eye_in_hand")
SIDE, REACH, SHAKE = 96, 0.05, 0.05
UPDATES, BATCH = 600, 64


def render(frames: int) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """The cube's place `[N, 2]` in metres, and the pictures `[N, 96, 96, 3]` of each camera."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    from rql_deploy.sim.plants.robosuite_env import RobosuiteEnv

    env = RobosuiteEnv("Lift", cameras=[f"{name}:{SIDE}x{SIDE}" for name in CAMERAS])
    env.reset(seed=0)
    import mujoco

    model, data = env.simulation()
    model, data = getattr(model, "_model", model), getattr(data, "_data", data)
    joints = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, i) or "" for i in range(model.njnt)]
    cube = next(model.jnt_qposadr[i] for i, name in enumerate(joints) if name.startswith("cube"))
    arm = [model.jnt_qposadr[i] for i, name in enumerate(joints) if name.startswith("robot0_joint")]
    home, rng = data.qpos.copy(), np.random.default_rng(0)
    places, seen = [], []
    for _ in range(frames):
        place, turn = rng.uniform(-REACH, REACH, 2), rng.uniform(0, 2 * np.pi)
        data.qpos[:] = home
        data.qpos[cube : cube + 2] = place
        data.qpos[cube + 3 : cube + 7] = [np.cos(turn / 2), 0, 0, np.sin(turn / 2)]
        data.qpos[arm] += rng.normal(0, SHAKE, len(arm))
        mujoco.mj_forward(model, data)
        places.append(place)
        seen.append(env.frames())
    env.close()
    pictures = {name: np.stack([frame[name] for frame in seen]) for name in seen[0]}
    return torch.tensor(np.array(places), dtype=torch.float32), pictures


def measure(backbone: Backbone, places: torch.Tensor, pictures: dict[str, np.ndarray]) -> dict[str, float]:
    """Milliseconds a frame, and the root mean square error in mm on what was and was not learnt from."""
    start = time.process_time()
    features = [torch.from_numpy(backbone(frames).astype(np.float16)).float() for frames in pictures.values()]
    cost = (time.process_time() - start) / sum(map(len, features))
    cut = len(places) * 4 // 5
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    heads = [make_head(FrozenFeatures(backbone.shape, 1), generator) for _ in features]
    for head, maps in zip(heads, features, strict=True):
        others = (0, *range(2, maps.dim()))
        head.set_moments(maps[:cut].mean(others), maps[:cut].std(others))
    width = sum(head.features for head in heads)
    last = torch.nn.Sequential(torch.nn.Linear(width, 128), torch.nn.GELU(), torch.nn.Linear(128, 2))
    parameters = [*last.parameters(), *(p for head in heads for p in head.parameters())]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def predicted(rows: slice | torch.Tensor) -> torch.Tensor:
        seen = [head(maps[rows]) for head, maps in zip(heads, features, strict=True)]
        return last(torch.cat(seen, dim=1)) * REACH

    for _ in range(UPDATES):
        rows = torch.randint(cut, (BATCH,), generator=generator)
        loss = ((predicted(rows) - places[rows]) / REACH).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        errors = (predicted(slice(None)) - places).norm(dim=1).square()
    known, new = (1e3 * float(part.mean().sqrt()) for part in (errors[:cut], errors[cut:]))
    return {"ms_per_frame": 1e3 * cost, "known_mm": known, "new_mm": new}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--frames", type=int, default=260)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    places, pictures = render(arguments.frames)
    cut = len(places) * 4 // 5
    mean = 1e3 * float((places[cut:] - places[:cut].mean(0)).norm(dim=1).square().mean().sqrt())
    results: dict[str, dict[str, float]] = {}
    print(f"{'features':28} {'ms/frame':>9} {'known':>9} {'new':>9}")
    print(f"{'the mean':28} {'':>9} {'':>9} {mean:>6.1f} mm")
    with tempfile.TemporaryDirectory() as folder:
        backbones = {file.stem: check_backbone(file) for file in arguments.files}
        if not backbones:
            for kind, pooled in (("map", False), ("pooled", True)):
                file = Path(folder) / f"{kind}.onnx"
                backbones[kind] = make_backbone("efficientnet-lite0", file, size=(SIDE, SIDE), pooled=pooled)
        for name, backbone in backbones.items():
            found = results[name] = measure(backbone, places, pictures)
            label = f"{name} {'x'.join(map(str, backbone.shape))}"
            cost, known, new = found.values()
            print(f"{label:28} {cost:>9.1f} {known:>6.1f} mm {new:>6.1f} mm")
    print(json.dumps({"frames": len(places), "mean_mm": mean, "backbones": results}))


if __name__ == "__main__":
    main()
