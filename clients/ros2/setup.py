"""Installs the package where colcon puts it. rql-deploy itself comes from pip (README.md)."""

from setuptools import setup

NAME = "rql_deploy_ros2"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/policy.launch.py"]),
        (f"share/{NAME}/config", ["config/policy.yaml", "config/robot.toml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    license="Apache-2.0",
    entry_points={"console_scripts": [f"policy_node = {NAME}.node:main"]},
)
