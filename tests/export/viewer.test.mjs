// The plain functions of the page's module: node --test tests/export/viewer.test.mjs
import assert from "node:assert/strict";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

import * as viewer from "../../facerecon/export/templates/viewer.mjs";

const near = (found, expected, tolerance = 1e-9) =>
  found.forEach((value, k) => assert.ok(Math.abs(value - expected[k]) < tolerance, `${found} is not ${expected}`));

test("a gzipped file comes back from base64", async () => {
  const bytes = Uint8Array.from({ length: 5000 }, (_, k) => (k * k) % 251);
  const text = gzipSync(bytes).toString("base64");
  assert.deepEqual(await viewer.gunzip(viewer.decodeBase64(`\n${text}\n`)), bytes);
});

test("light shades as the library does", () => {
  // values of facerecon.geometry.lighting.shade, handed over by the Python test
  const known = JSON.parse(process.env.SHADES ?? "[]");
  for (const { normal, light, expected } of known) near(viewer.shade(normal, light), expected, 1e-5);
  const flat = Array.from({ length: 9 }, (_, k) => (k ? [0, 0, 0] : [1, 1, 1]));
  const encoded = viewer.shade([0, 0, 1], { coefficients: flat, space: "encoded" });
  near(encoded, [0.886226925, 0.886226925, 0.886226925], 1e-8);
  near(viewer.shade([0, 0, 1], { coefficients: flat, space: "linear" }), encoded.map((v) => v ** (1 / 2.2)));
  const dark = flat.map((row) => row.map((v) => -v));
  near(viewer.shade([0, 0, 1], { coefficients: dark, space: "linear" }), Array(3).fill(0.001 ** (1 / 2.2)));
});

test("a lamp is where the disc shows it", () => {
  near(viewer.lampDirection(90, 0), [1, 0, 0]);
  near(viewer.lampDirection(0, 90), [0, 1, 0]);
  for (const [x, y] of [[0, 0], [0.3, -0.5], [-0.7, 0.1], [0.6, 0.6]]) {
    near(viewer.discOfLamp(...viewer.lampOfDisc(x, y)), [x, y], 1e-6);
  }
  assert.ok(viewer.lampDirection(...viewer.lampOfDisc(1, 0))[2] < 0, "the rim lies behind the face");
  near(viewer.discOfLamp(180, 0), [0, 1]);
});

test("eyes reflect what is before and above them", () => {
  const behind = Array.from({ length: 9 }, (_, k) => (k === 2 ? [-1, -1, -1] : k === 1 ? [1, 1, 1] : [0, 0, 0]));
  const [x, y, z] = viewer.glintDirection({ coefficients: behind });
  assert.ok(z > 0 && y > 0);
  assert.ok(Math.abs(Math.hypot(x, y, z) - 1) < 1e-9);
});

test("units have groups and words", () => {
  const units = ["mouthSmileLeft", "browDown_L", "jawOpen", "tongueOut", "eyeLookInRight", "noseSneerLeft", "unit3"];
  assert.deepEqual(viewer.groupUnits(units), [
    ["Brows", [1]], ["Eyes", [4]], ["Cheeks and nose", [5]], ["Jaw and tongue", [2, 3]], ["Mouth", [0]], ["Other", [6]],
  ]);
  assert.deepEqual(units.map(viewer.unitLabel), [
    "Smile, left", "Down, left", "Open", "Out", "Look in, right", "Sneer, left", "Unit3",
  ]);
  assert.equal(viewer.unitLabel("jawLeft"), "Left");
  assert.deepEqual(viewer.groupUnits([]), []);
});

test("presets hold weights of the head's units", () => {
  const units = ["mouthSmile_R", "jawOpen", "mouthSmileLeft"];
  assert.deepEqual(viewer.presetWeights(viewer.PRESETS.Neutral, units), [0, 0, 0]);
  assert.deepEqual(viewer.presetWeights(viewer.PRESETS.Smile, units), [0.75, 0, 0.75]);
  assert.equal(viewer.presetWeights(viewer.PRESETS.Wink, ["unit0"]), null);
  for (const preset of Object.values(viewer.PRESETS)) {
    for (const weight of Object.values(preset)) assert.ok(weight > 0 && weight <= 1);
  }
});

test("weights blend", () => {
  near(viewer.blend([0, 1], [1, 0], 0.25), [0.25, 0.75]);
  near([viewer.ease(0), viewer.ease(0.5), viewer.ease(1)], [0, 0.5, 1]);
  near(viewer.parseColor("#ff8000"), [1, 128 / 255, 0]);
});

test("a head fits into its frame", () => {
  const distance = viewer.distanceFor(0.3, 0.2, 90, 1);
  assert.ok(Math.abs(distance - 0.15) < 1e-9);
  assert.ok(Math.abs(viewer.distanceFor(0.3, 0.2, 90, 0.5) - 0.2) < 1e-9);
});
