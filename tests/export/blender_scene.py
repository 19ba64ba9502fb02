"""Run by Blender, not by pytest: imports a head, writes what it finds as JSON and numpy files, and a picture.

    blender -b --factory-startup --python blender_scene.py -- HEAD OUT SITE_PACKAGES JSON

HEAD is a .glb or .obj file, SITE_PACKAGES a folder with numpy (Debian's package comes without). JSON: {"units": names
of shape keys to store, "weights": {name: value}, "focal": over the width of the picture, "camera": [x, y, z] in
meters, "size": px, 0 for no picture, "lit": whether lamps shine, else the base color glows}.
"""

import json
import math
import sys

arguments = sys.argv[sys.argv.index("--") + 1 :]
sys.path.append(arguments[2])

import bpy  # noqa: E402
import numpy as np  # noqa: E402

source, out, options = arguments[0], arguments[1], json.loads(arguments[3])
bpy.ops.wm.read_factory_settings(use_empty=True)
if source.endswith(".glb"):
    bpy.ops.import_scene.gltf(filepath=source)
else:
    bpy.ops.wm.obj_import(filepath=source)
(head,) = (thing for thing in bpy.data.objects if thing.type == "MESH")
mesh = head.data
keys = mesh.shape_keys.key_blocks if mesh.shape_keys else {}
for name, value in options.get("weights", {}).items():
    keys[name].value = value


def placed(points) -> np.ndarray:
    """(N, 3) in the scene, meters."""
    matrix = np.array(head.matrix_world)
    return np.array([point.co[:] for point in points]) @ matrix[:3, :3].T + matrix[:3, 3]


bpy.context.view_layer.update()
drawn = head.evaluated_get(bpy.context.evaluated_depsgraph_get()).data
rest = placed(keys["Basis"].data) if keys else placed(mesh.vertices)
arrays = {"rest": rest, "drawn": placed(drawn.vertices)}
arrays |= {f"unit {name}": placed(keys[name].data) - rest for name in options.get("units", [])}
arrays["materials"] = np.array([face.material_index for face in mesh.polygons])
arrays["triangles"] = np.array([face.vertices[:] for face in mesh.polygons])
np.savez(f"{out}/head.npz", **arrays)
rate, tracks = bpy.context.scene.render.fps, {}
for action in bpy.data.actions:
    for curve in action.fcurves:
        values = [[point.co[0] / rate, point.co[1]] for point in curve.keyframe_points]
        tracks[f"{curve.data_path} {curve.array_index}"] = values
report = {
    "name": head.name,
    "keys": [key.name for key in keys][1:] if keys else [],
    "values": {key.name: key.value for key in keys} if keys else {},
    "materials": [material.name for material in mesh.materials],
    "dimensions": list(head.dimensions),
    "tracks": tracks,
}
with open(f"{out}/head.json", "w") as file:
    json.dump(report, file)

scene = bpy.context.scene
scene.render.engine, scene.cycles.device, scene.cycles.samples = "CYCLES", "CPU", options.get("samples", 16)
scene.render.resolution_x = scene.render.resolution_y = options["size"] or 64
scene.cycles.use_denoising, scene.render.film_transparent = False, True
scene.view_settings.view_transform = "Standard"
scene.render.filepath = f"{out}/head.png"
camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
camera.location, camera.rotation_euler = options["camera"], (math.pi / 2, 0, 0)
camera.data.sensor_width, camera.data.lens = 36, 36 * options["focal"]
camera.data.clip_start = 0.01
scene.collection.objects.link(camera)
scene.camera = camera
if options.get("lit"):
    scene.world = bpy.data.worlds.new("sky")
    scene.world.use_nodes = True
    scene.world.node_tree.nodes["Background"].inputs[0].default_value = (0.35, 0.37, 0.4, 1)
    for place, power in (((-0.7, -0.9, 0.7), 22), ((0.9, -0.6, 0.2), 8)):
        lamp = bpy.data.objects.new("lamp", bpy.data.lights.new("lamp", "AREA"))
        lamp.data.energy, lamp.data.size, lamp.location = power, 0.5, place
        lamp.rotation_euler = (-head.matrix_world.translation + lamp.location).to_track_quat("Z", "Y").to_euler()
        scene.collection.objects.link(lamp)
else:
    for material in mesh.materials:
        tree = material.node_tree
        (picture,) = (node for node in tree.nodes if node.type == "TEX_IMAGE")
        glow = tree.nodes.new("ShaderNodeEmission")
        tree.links.new(picture.outputs["Color"], glow.inputs["Color"])
        (end,) = (node for node in tree.nodes if node.type == "OUTPUT_MATERIAL")
        tree.links.new(glow.outputs["Emission"], end.inputs["Surface"])
if options["size"]:
    bpy.ops.render.render(write_still=True)
