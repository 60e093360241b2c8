"""robosuite's models without what only pictures need, to the last bit the same physics.

A reset builds a new model, since some tasks draw object sizes from the episode's seed. Of the 111 ms that it
takes for Lift (EPYC Zen 3), visual meshes and textures are 71: they collide with nothing, and have no mass
where their bodies state their inertia.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

import mujoco
import numpy as np

PHYSICS = (
    *("qpos0", "body_mass", "body_inertia", "body_ipos", "body_iquat", "body_pos", "body_quat"),
    *("body_invweight0", "body_subtreemass", "dof_invweight0", "dof_M0", "dof_armature", "dof_damping"),
    *("site_pos", "site_quat", "site_bodyid", "actuator_acc0", "actuator_gear", "tendon_invweight0"),
)
"""Arrays that must not change when visual meshes go."""


def without_visuals(xml: str) -> str:
    """A model's XML with small spheres for visual meshes, without textures and meshes that nothing uses.

    The spheres keep names and numbers of geoms as they are: robosuite looks them up.
    """
    root = ET.fromstring(xml)
    for geom in root.iter("geom"):
        if geom.get("type") == "mesh" and geom.get("contype") == geom.get("conaffinity") == "0":
            del geom.attrib["mesh"]
            geom.attrib |= {"type": "sphere", "size": "0.001"}
    used = {geom.get("mesh") for geom in root.iter("geom")}
    for asset in root.iter("asset"):
        for item in list(asset):
            if item.tag == "texture" or (item.tag == "mesh" and item.get("name") not in used):
                asset.remove(item)
            elif item.tag == "material":
                item.attrib.pop("texture", None)
    return ET.tostring(root, encoding="unicode")


def same_physics(a: mujoco.MjModel, b: mujoco.MjModel) -> bool:
    """Whether two models have the same bodies, joints, sites and colliding geoms, to the last bit."""
    equal = (np.array_equal(getattr(a, name), getattr(b, name)) for name in PHYSICS)
    return all(equal) and a.stat.meaninertia == b.stat.meaninertia and _colliding(a) == _colliding(b)


def _colliding(model: mujoco.MjModel) -> list[bytes]:
    """What decides contacts, of each geom that can have some."""
    chosen = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    fields = ("type", "bodyid", "size", "pos", "quat", "friction", "solref", "solimp", "margin", "condim")
    return [np.ascontiguousarray(getattr(model, f"geom_{name}")[chosen]).tobytes() for name in fields]
