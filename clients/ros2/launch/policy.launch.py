"""Starts the policy's node: `ros2 launch rql_deploy_ros2 policy.launch.py map:=/path/to/robot.toml`."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

ARGUMENTS = {
    "map": "The robot's topic map (TOML).",
    "endpoint": "The policy server, such as tcp://10.0.0.5:5555.",
}


def generate_launch_description() -> LaunchDescription:
    parameters = PathJoinSubstitution([FindPackageShare("rql_deploy_ros2"), "config", "policy.yaml"])
    return LaunchDescription(
        [
            DeclareLaunchArgument("params", default_value=parameters, description="Parameters (YAML)."),
            DeclareLaunchArgument("map", description=ARGUMENTS["map"]),
            DeclareLaunchArgument(
                "endpoint", default_value="tcp://127.0.0.1:5555", description=ARGUMENTS["endpoint"]
            ),
            Node(
                package="rql_deploy_ros2",
                executable="policy_node",
                name="policy",
                output="screen",
                parameters=[
                    LaunchConfiguration("params"),
                    {name: LaunchConfiguration(name) for name in ARGUMENTS},
                ],
            ),
        ]
    )
