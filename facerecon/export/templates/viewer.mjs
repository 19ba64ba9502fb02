// The page of one head: viewer.html. It holds this file, three.js (as THREE), a GLB and a few maps, and loads nothing.
// What is exported are plain functions, which tests call; start() at the end runs in a page only.

const GAMMA = 2.2;
const DARKEST = 1e-3;
const REST = 14; // degrees from which the head is first seen
const BAR = 56; // pixels below the head that belong to buttons
const BAND = [
  Math.PI / Math.sqrt(4 * Math.PI),
  ((2 * Math.PI) / Math.sqrt(3)) * Math.sqrt(3 / (4 * Math.PI)),
  ((2 * Math.PI) / Math.sqrt(8)) * ((3 * Math.sqrt(5)) / Math.sqrt(12 * Math.PI)),
];

/** Bytes of base64 text. */
export function decodeBase64(text) {
  const binary = atob(text.trim());
  return Uint8Array.from(binary, (letter) => letter.charCodeAt(0));
}

/** Bytes that were gzipped. */
export async function gunzip(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The nine basis functions of the light at a unit normal, as facerecon.geometry.lighting.sh_basis. */
export function shBasis([x, y, z]) {
  const [a, b, c] = BAND;
  return [
    a, -b * y, b * z, -b * x, c * x * y, -c * y * z, (c / (2 * Math.sqrt(3))) * (3 * z * z - 1), -c * x * z,
    (c / 2) * (x * x - y * y),
  ];
}

/** What multiplies encoded albedo at a unit normal, as facerecon.geometry.lighting.shade: [r, g, b]. */
export function shade(normal, { coefficients, space }) {
  const basis = shBasis(normal);
  return [0, 1, 2].map((channel) => {
    const irradiance = basis.reduce((sum, value, k) => sum + value * coefficients[k][channel], 0);
    return space === "encoded" ? irradiance : Math.max(irradiance, DARKEST) ** (1 / GAMMA);
  });
}

/** Unit vector towards what eyes reflect: where the light comes from most, but in front of the face and above it. */
export function glintDirection({ coefficients }) {
  const mean = (row) => (coefficients[row][0] + coefficients[row][1] + coefficients[row][2]) / 3;
  const [x, y, z] = [-mean(3), Math.max(-mean(1), 0), Math.max(mean(2), 0)];
  const size = Math.hypot(x, y, z) || 1;
  const [dx, dy, dz] = [(0.8 * x) / size, 0.5 + (0.5 * y) / size, 1 + z / size];
  const length = Math.hypot(dx, dy, dz);
  return [dx / length, dy / length, dz / length];
}

/** Unit vector towards a lamp: azimuth and height in degrees, 0, 0 in front of the face, positive to the viewer's right and up. */
export function lampDirection(azimuth, height) {
  const a = (azimuth * Math.PI) / 180;
  const h = (height * Math.PI) / 180;
  return [Math.sin(a) * Math.cos(h), Math.sin(h), Math.cos(a) * Math.cos(h)];
}

/** Azimuth and height of a place (x right, y up) on a disc of radius 1, whose rim is 120 degrees from the middle. */
export function lampOfDisc(x, y) {
  const radius = Math.min(Math.hypot(x, y), 1);
  const angle = (radius * 120 * Math.PI) / 180;
  const turn = Math.atan2(y, x);
  const [dx, dy, dz] = [Math.sin(angle) * Math.cos(turn), Math.sin(angle) * Math.sin(turn), Math.cos(angle)];
  return [(Math.atan2(dx, dz) * 180) / Math.PI, (Math.asin(Math.min(Math.max(dy, -1), 1)) * 180) / Math.PI];
}

/** The place on the disc of a lamp; one behind the disc's rim is shown on the rim. */
export function discOfLamp(azimuth, height) {
  const [x, y, z] = lampDirection(azimuth, height);
  const flat = Math.hypot(x, y);
  if (flat < 1e-6) return z > 0 ? [0, 0] : [0, 1];
  const radius = Math.min((Math.acos(Math.min(Math.max(z, -1), 1)) * 180) / Math.PI / 120, 1);
  return [(x / flat) * radius, (y / flat) * radius];
}

/** "#rrggbb" -> [r, g, b] in [0, 1]. */
export function parseColor(text) {
  return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16) / 255);
}

/** ARKit's way of writing a unit of the expression: browDown_L -> browDownLeft. */
export function arkitName(unit) {
  return unit.replace(/_L$/, "Left").replace(/_R$/, "Right");
}

/** Words for a unit: mouthSmileLeft -> "Smile, left". */
export function unitLabel(unit) {
  const words = arkitName(unit).replace(/([a-z0-9])([A-Z])/g, "$1 $2").replace(/_/g, " ").toLowerCase().split(" ");
  if (groupOf(unit) !== "Other" && words.length > 1) words.shift();
  let side = "";
  if (words.length > 1 && ["left", "right"].includes(words.at(-1))) side = `, ${words.pop()}`;
  const text = words.join(" ") + side;
  return text.charAt(0).toUpperCase() + text.slice(1);
}

const GROUPS = [
  ["Brows", /^brow/], ["Eyes", /^eye/], ["Cheeks and nose", /^(cheek|nose)/], ["Jaw and tongue", /^(jaw|tongue)/],
  ["Mouth", /^mouth/],
];

function groupOf(unit) {
  const found = GROUPS.find(([, pattern]) => pattern.test(unit));
  return found ? found[0] : "Other";
}

/** Units by part of the face: [[title, [index, ...]], ...], without empty groups. */
export function groupUnits(units) {
  const titles = [...GROUPS.map(([title]) => title), "Other"];
  return titles
    .map((title) => [title, units.map((unit, index) => [unit, index]).filter(([unit]) => groupOf(unit) === title)])
    .filter(([, members]) => members.length)
    .map(([title, members]) => [title, members.map(([, index]) => index)]);
}

const both = (unit, weight) => ({ [`${unit}Left`]: weight, [`${unit}Right`]: weight });

export const PRESETS = {
  Neutral: {},
  Smile: { ...both("mouthSmile", 0.75), ...both("cheekSquint", 0.5), ...both("eyeSquint", 0.2), ...both("mouthDimple", 0.2) },
  Surprise: { browInnerUp: 0.8, ...both("browOuterUp", 0.8), ...both("eyeWide", 0.7), jawOpen: 0.4, mouthFunnel: 0.2 },
  Anger: { ...both("browDown", 0.9), ...both("noseSneer", 0.4), ...both("eyeSquint", 0.35), ...both("mouthPress", 0.5), ...both("mouthFrown", 0.25) },
  Sadness: { browInnerUp: 0.9, ...both("mouthFrown", 0.65), ...both("eyeLookDown", 0.3), mouthShrugLower: 0.35, ...both("eyeSquint", 0.1) },
  Wink: { eyeBlinkLeft: 1, cheekSquintLeft: 0.6, mouthSmileLeft: 0.55, mouthSmileRight: 0.25, mouthDimpleLeft: 0.2 },
  Pucker: { mouthPucker: 0.9, mouthFunnel: 0.1, ...both("cheekSquint", 0.15) },
};

/** Weights of a preset, one a unit; null where the head has none of the preset's units. */
export function presetWeights(preset, units) {
  const weights = units.map((unit) => preset[arkitName(unit)] ?? 0);
  return Object.keys(preset).length && weights.every((weight) => weight === 0) ? null : weights;
}

/** Weights between two sets of them; t in [0, 1]. */
export function blend(from, to, t) {
  return from.map((weight, k) => weight + (to[k] - weight) * t);
}

/** Slow at both ends; t in [0, 1]. */
export function ease(t) {
  return t * t * (3 - 2 * t);
}

/** Distance from which an upright field of view (degrees) holds a head of this height and width. */
export function distanceFor(height, width, fov, aspect) {
  const half = Math.tan((fov * Math.PI) / 360);
  return Math.max(height, width / aspect) / 2 / half;
}

const VERTEX = /* glsl */ `
#include <common>
#include <morphtarget_pars_vertex>
varying vec3 vTurned;
varying vec2 vMap;
void main() {
  vMap = uv;
  #include <morphinstance_vertex>
  #include <morphcolor_vertex>
  #include <beginnormal_vertex>
  #include <morphnormal_vertex>
  #include <begin_vertex>
  #include <morphtarget_vertex>
  vTurned = normalMatrix * objectNormal;
  gl_Position = projectionMatrix * modelViewMatrix * vec4(transformed, 1.0);
}`;

const FRAGMENT = /* glsl */ `
uniform sampler2D albedo, photoShade, coverage;
uniform vec3 tint, lampColor, lampDirection, window;
uniform vec3 light[9];
uniform mat3 toLight;
uniform vec2 shadeRange;
uniform float photoLight, gloss;
uniform bool linearLight, cut;
varying vec3 vTurned;
varying vec2 vMap;
void main() {
  vec3 n = normalize(toLight * vTurned);
  vec3 irradiance = light[0] * ${BAND[0]} + light[1] * (${-BAND[1]} * n.y) + light[2] * (${BAND[1]} * n.z)
    + light[3] * (${-BAND[1]} * n.x) + light[4] * (${BAND[2]} * n.x * n.y) + light[5] * (${-BAND[2]} * n.y * n.z)
    + light[6] * (${BAND[2] / (2 * Math.sqrt(3))} * (3.0 * n.z * n.z - 1.0)) + light[7] * (${-BAND[2]} * n.x * n.z)
    + light[8] * (${BAND[2] / 2} * (n.x * n.x - n.y * n.y));
  vec3 shade = exp2(shadeRange.x + shadeRange.y * texture2D(photoShade, vMap).rgb);
  vec3 lamp = lampColor * max(dot(n, lampDirection), 0.0);
  vec3 factor = linearLight
    ? pow(max(pow(shade, vec3(${GAMMA})) * irradiance * photoLight + lamp, ${DARKEST}), vec3(${1 / GAMMA}))
    : shade * irradiance * photoLight + lamp;
  vec3 color = clamp(texture2D(albedo, vMap).rgb * tint * factor, 0.0, 1.0);
  vec3 between = normalize(window + toLight * vec3(0.0, 0.0, 1.0));
  color += gloss * pow(max(dot(n, between), 0.0), 600.0) * photoLight;
  float alpha = cut ? texture2D(coverage, vMap).g : 1.0;
  gl_FragColor = vec4(color * alpha, alpha);
}`;

// -- the page -------------------------------------------------------------------------------------------------------

if (typeof document !== "undefined") {
  globalThis.viewer = start().catch((error) => {
    const said = document.getElementById("status");
    said.textContent = `The head cannot be shown: ${error.message}`;
    said.hidden = false;
    throw error;
  });
}

async function start() {
  const at = (id) => document.getElementById(id);
  const data = JSON.parse(at("data").textContent);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const canvas = at("canvas");
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old (DecompressionStream).");
  const glb = await gunzip(decodeBase64(at("glb").textContent));

  const renderer = new THREE.WebGLRenderer({ canvas, alpha: true, antialias: true });
  renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
  renderer.toneMapping = THREE.NeutralToneMapping;
  renderer.shadowMap.enabled = true;
  renderer.shadowMap.type = THREE.VSMShadowMap;
  const scene = new THREE.Scene();
  const file = await new THREE.GLTFLoader().parseAsync(glb.buffer, "");
  scene.add(file.scene);
  scene.updateMatrixWorld(true);

  const parts = [];
  file.scene.traverse((node) => node.isMesh && parts.push(node));
  const units = Object.keys(parts[0].morphTargetDictionary ?? {});
  const weights = units.map((unit) => data.fitted[unit] ?? 0);
  const fitted = [...weights];
  const anisotropy = renderer.capabilities.getMaxAnisotropy();

  // -- materials: of each part one for the photo's light, in its own space, and the file's own for the studio

  const picture = (source, colorSpace, place) => {
    const made = new THREE.Texture(source);
    made.flipY = false;
    made.colorSpace = colorSpace;
    made.generateMipmaps = Boolean(place);
    made.minFilter = place ? THREE.LinearMipmapLinearFilter : THREE.LinearFilter;
    made.needsUpdate = true;
    return made;
  };
  const [shadeMap, coverageMap] = await Promise.all([data.shade, data.coverage].map(async (source) => {
    const image = new Image();
    image.src = source;
    await image.decode();
    return picture(image, THREE.NoColorSpace, false);
  }));
  const white = new THREE.DataTexture(new Uint8Array([255, 255, 255, 255]), 1, 1);
  white.needsUpdate = true;
  const shared = {
    light: { value: data.light.coefficients.map((row) => new THREE.Vector3(...row)) },
    linearLight: { value: data.light.space !== "encoded" },
    toLight: { value: new THREE.Matrix3() },
    lampColor: { value: new THREE.Vector3() },
    lampDirection: { value: new THREE.Vector3() },
    photoLight: { value: 1 },
    window: { value: new THREE.Vector3(...glintDirection(data.light)) },
    coverage: { value: coverageMap },
  };
  for (const part of parts) {
    const eyes = part.material.name === "eyes";
    const studio = part.material;
    const encoded = studio.map.clone();
    encoded.colorSpace = THREE.NoColorSpace;
    encoded.needsUpdate = true;
    for (const map of [studio.map, encoded]) map.anisotropy = eyes ? 1 : Math.min(4, anisotropy);
    part.castShadow = part.receiveShadow = true;
    part.frustumCulled = false;
    studio.envMapIntensity = 1;
    const photo = new THREE.ShaderMaterial({
      vertexShader: VERTEX,
      fragmentShader: FRAGMENT,
      uniforms: {
        ...shared,
        albedo: { value: encoded },
        photoShade: { value: eyes ? white : shadeMap },
        shadeRange: { value: eyes ? new THREE.Vector2(0, 0) : new THREE.Vector2(...data.shadeRange) },
        tint: { value: new THREE.Vector3(1, 1, 1) },
        gloss: { value: eyes ? 0.7 : 0 },
        cut: { value: false },
      },
      toneMapped: false,
      blending: THREE.NoBlending,
    });
    const lines = new THREE.Mesh(part.geometry, new THREE.MeshBasicMaterial({
      wireframe: true, color: 0x1b2430, transparent: true, opacity: 0.35, toneMapped: false,
    }));
    lines.morphTargetInfluences = part.morphTargetInfluences;
    lines.morphTargetDictionary = part.morphTargetDictionary;
    lines.frustumCulled = false;
    lines.visible = false;
    part.add(lines);
    Object.assign(part.userData, { eyes, studio, photo, lines, encoded, decoded: studio.map });
    for (const material of [studio, photo]) Object.assign(material, { polygonOffset: true, polygonOffsetFactor: 1, polygonOffsetUnits: 1 });
  }

  const seen = () => {
    // the texture, faded where the photo does not show it, as the panel does
    const image = parts[0].userData.decoded.image;
    const drawn = document.createElement("canvas");
    drawn.width = image.width;
    drawn.height = image.height;
    const context = drawn.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const texels = context.getImageData(0, 0, drawn.width, drawn.height);
    context.drawImage(coverageMap.image, 0, 0, drawn.width, drawn.height);
    const shown = context.getImageData(0, 0, drawn.width, drawn.height).data;
    for (let k = 0; k < texels.data.length; k += 4) {
      const share = 0.12 + 0.88 * (shown[k] / 255);
      for (let c = 0; c < 3; c++) texels.data[k + c] = texels.data[k + c] * share + 212 * (1 - share);
    }
    context.putImageData(texels, 0, 0);
    return [picture(drawn, THREE.SRGBColorSpace, true), picture(drawn, THREE.NoColorSpace, true)];
  };
  let seenMaps = null;

  // -- lights of the studio

  const lamp = new THREE.DirectionalLight(0xffffff, 1);
  lamp.castShadow = true;
  lamp.shadow.mapSize.set(512, 512);
  lamp.shadow.radius = 3;
  lamp.shadow.blurSamples = 8;
  lamp.shadow.bias = -0.0005;
  lamp.shadow.normalBias = 0.004;
  const reach = data.frame.radius * 1.25;
  Object.assign(lamp.shadow.camera, { left: -reach, right: reach, top: reach, bottom: -reach, near: 0.2, far: 2 });
  scene.add(lamp, lamp.target);

  // -- cameras

  const center = new THREE.Vector3(...data.frame.center);
  const free = new THREE.PerspectiveCamera(20, 1, 0.05, 10);
  const controls = new THREE.OrbitControls(free, at("frame"));
  Object.assign(controls, { enablePan: false, enableDamping: !still.matches, dampingFactor: 0.09, rotateSpeed: 0.8 });
  Object.assign(controls, { minPolarAngle: 0.45, maxPolarAngle: 2.3 });
  controls.target.copy(center);
  const fixed = new THREE.PerspectiveCamera();
  fixed.matrixAutoUpdate = fixed.matrixWorldAutoUpdate = false;
  if (data.photo) {
    fixed.matrixWorld.fromArray(data.photo.view).invert();
    fixed.matrixWorldInverse.fromArray(data.photo.view);
    fixed.projectionMatrix.fromArray(data.photo.projection);
    fixed.projectionMatrixInverse.copy(fixed.projectionMatrix).invert();
  }
  const turnTo = (yaw, pitch) => {
    const away = free.position.distanceTo(center) || 1;
    free.position.set(...lampDirection(-yaw, pitch)).multiplyScalar(away).add(center);
    controls.update();
  };

  const state = {
    look: "photo", surface: "texture", compare: false, divider: 0.5, attached: false, playing: false,
    lamp: { azimuth: -40, height: 30, color: "#ffffff", strength: { photo: 0, studio: 1 } },
    room: { photo: 1, studio: 1 },
  };

  // -- drawing

  const toWorld = new THREE.Matrix4().fromArray(data.axes); // from the view's axes to those of the light
  const posed = new THREE.Matrix4().fromArray(data.pose); // from the head's axes to those of the light
  const scratch = { quaternion: new THREE.Quaternion(), matrix: new THREE.Matrix4(), other: new THREE.Matrix4() };

  function aimLights(camera) {
    const { matrix, other, quaternion } = scratch;
    if (state.attached) {
      parts[0].getWorldQuaternion(quaternion).invert();
      matrix.copy(posed).multiply(other.makeRotationFromQuaternion(quaternion));
    } else {
      matrix.copy(toWorld);
    }
    // matrix: axes that the light is fixed to -> the light's
    const inView = other.extractRotation(camera.matrixWorld);
    const lightFromView = state.attached ? matrix.clone().multiply(inView) : matrix.clone();
    shared.toLight.value.setFromMatrix4(lightFromView);
    const aim = new THREE.Vector3(...lampDirection(state.lamp.azimuth, state.lamp.height));
    const rgb = parseColor(state.lamp.color);
    const strength = state.lamp.strength[state.look];
    const lit = shared.linearLight.value ? rgb.map((value) => value ** GAMMA) : rgb;
    shared.lampColor.value.set(...lit).multiplyScalar(strength);
    shared.lampDirection.value.copy(aim);
    shared.photoLight.value = state.room.photo;
    // the studio's lights in the scene: back from the light's axes
    const worldFromLight = inView.clone().multiply(lightFromView.clone().transpose());
    lamp.color.set(state.lamp.color);
    lamp.intensity = 2.2 * strength;
    lamp.position.copy(aim).applyMatrix4(worldFromLight).add(center);
    lamp.target.position.copy(center);
    scene.environmentRotation.setFromRotationMatrix(worldFromLight);
    scene.environmentIntensity = 0.95 * state.room.studio;
  }

  function dress() {
    const wires = state.surface === "wireframe";
    const clay = state.surface === "clay" || wires;
    if (state.surface === "visibility") seenMaps ??= seen();
    for (const part of parts) {
      const { eyes, studio, photo, lines, encoded, decoded } = part.userData;
      part.material = state.look === "studio" ? studio : photo;
      lines.visible = wires;
      const faded = state.surface === "visibility" && !eyes;
      const maps = clay ? [null, white] : faded ? seenMaps : [decoded, encoded];
      if (studio.map !== maps[0]) Object.assign(studio, { map: maps[0], needsUpdate: true });
      studio.color.setScalar(clay ? 0.48 : 1);
      const cut = state.compare && !clay;
      if (studio.transparent !== cut) Object.assign(studio, { transparent: cut, alphaMap: cut && !eyes ? coverageMap : null, needsUpdate: true });
      photo.uniforms.albedo.value = maps[1];
      photo.uniforms.tint.value.setScalar(clay ? 0.72 : eyes ? data.eyeShade : 1);
      photo.uniforms.photoShade.value = clay || eyes ? white : shadeMap;
      photo.uniforms.shadeRange.value.set(...(clay || eyes ? [0, 0] : data.shadeRange));
      photo.uniforms.cut.value = cut && !eyes;
    }
  }

  function draw() {
    const camera = state.compare ? fixed : free;
    parts.forEach((part) => weights.forEach((weight, k) => (part.morphTargetInfluences[k] = weight)));
    scene.updateMatrixWorld();
    if (state.look === "studio") scene.environment ??= studioRoom(renderer);
    lamp.castShadow = state.look === "studio";
    if (!state.compare) free.updateMatrixWorld();
    dress();
    aimLights(camera);
    renderer.render(scene, camera);
  }

  let asked = false;
  const redraw = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      if (!state.compare && controls.update()) redraw();
      draw();
    });
  };

  const frame = at("frame");
  let framed = 0;
  const fit = () => {
    const { clientWidth: width, clientHeight: height } = frame;
    if (!width || !height) return;
    renderer.setSize(width, height, false);
    free.aspect = width / height;
    const room = (height - BAR) / height;
    const distance = distanceFor((data.frame.height * 1.3) / room, data.frame.radius * 2.7, free.fov, free.aspect);
    const zoom = framed ? free.position.distanceTo(center) / framed : 1;
    free.position.sub(center).setLength(distance * zoom).add(center);
    framed = distance;
    Object.assign(controls, { minDistance: distance * 0.35, maxDistance: distance * 1.8 });
    free.setViewOffset(width, height, 0, BAR / 2, width, height);
    controls.update();
    draw();
  };
  free.position.set(...lampDirection(REST, 3)).add(center);

  buildPage({ at, data, state, units, weights, fitted, redraw, still, controls, free, center, turnTo, glb, file, parts, fit, frame });
  new ResizeObserver(fit).observe(frame);
  fit();
  at("status").hidden = true;
  document.documentElement.dataset.ready = "true";

  const shown = {
    state, weights, units, draw, turnTo,
    /** A PNG data URI of what is shown, at another size. */
    picture(width, height) {
      const ratio = renderer.getPixelRatio();
      renderer.setPixelRatio(1);
      renderer.setSize(width, height, false);
      free.clearViewOffset();
      free.aspect = width / height;
      free.updateProjectionMatrix();
      draw();
      const uri = canvas.toDataURL("image/png");
      renderer.setPixelRatio(ratio);
      fit();
      return uri;
    },
  };
  return shown;
}

/** A room of soft boxes on gray, whose light falls from everywhere: an environment map. */
function studioRoom(renderer) {
  const room = new THREE.Scene();
  const add = (geometry, gray, place, size) => {
    const mesh = new THREE.Mesh(geometry, new THREE.MeshBasicMaterial({ color: new THREE.Color(gray, gray, gray), side: THREE.DoubleSide }));
    mesh.position.set(...place);
    mesh.scale.set(...size);
    mesh.lookAt(0, 0, 0);
    room.add(mesh);
  };
  const plane = new THREE.PlaneGeometry(1, 1);
  add(new THREE.SphereGeometry(10, 32, 16), 0.42, [0, 0, 0.001], [1, 1, 1]);
  add(plane, 3.2, [-5, 4, 4], [4, 4, 1]);
  add(plane, 1.8, [6, 2, 3], [2.5, 5, 1]);
  add(plane, 1.6, [0, 7, 0], [6, 6, 1]);
  add(plane, 2.4, [4, 3, -6], [3, 5, 1]);
  add(plane, 0.12, [0, -7, 0], [9, 9, 1]);
  const maker = new THREE.PMREMGenerator(renderer);
  const map = maker.fromScene(room, 0.02, 0.1, 100, { size: 64 }).texture;
  maker.dispose();
  return map;
}

function buildPage(page) {
  const { at, data, state, units, weights, fitted, redraw, still, controls, free, center, turnTo, glb, file, parts, fit, frame } = page;
  const all = (selector) => [...document.querySelectorAll(selector)];

  // -- turning

  let intro = !still.matches;
  const stopIntro = () => (intro = false);
  controls.addEventListener("change", redraw);
  for (const name of ["pointerdown", "keydown", "wheel"]) addEventListener(name, stopIntro, { passive: true, once: true });
  if (intro) {
    const began = performance.now();
    const step = (now) => {
      if (!intro || state.compare) return;
      const t = Math.min((now - began) / 3500, 1);
      turnTo(-REST + 40 * (1 - ease(t)), 3);
      redraw();
      if (t < 1) requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }
  const turnBy = (yaw, pitch) => {
    const away = free.position.clone().sub(center);
    const length = away.length();
    const angles = [Math.atan2(away.x, away.z) + yaw, Math.asin(away.y / length) + pitch];
    const height = Math.min(Math.max(angles[1], -0.7), 1.1);
    free.position.set(Math.sin(angles[0]) * Math.cos(height), Math.sin(height), Math.cos(angles[0]) * Math.cos(height));
    free.position.multiplyScalar(length).add(center);
    controls.update();
    redraw();
  };
  const zoomBy = (factor) => {
    const away = free.position.clone().sub(center);
    away.setLength(Math.min(Math.max(away.length() * factor, controls.minDistance), controls.maxDistance));
    free.position.copy(center).add(away);
    controls.update();
    redraw();
  };
  const KEYS = {
    ArrowLeft: () => turnBy(0.12, 0), ArrowRight: () => turnBy(-0.12, 0), ArrowUp: () => turnBy(0, -0.1),
    ArrowDown: () => turnBy(0, 0.1), "+": () => zoomBy(0.9), "=": () => zoomBy(0.9), "-": () => zoomBy(1 / 0.9),
    Home: () => turnTo(0, 0),
  };
  frame.addEventListener("keydown", (event) => {
    if (event.target !== frame || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    event.preventDefault();
    if (state.compare) {
      const moved = { ArrowLeft: -0.04, ArrowRight: 0.04 }[event.key];
      if (moved) setDivider(state.divider + moved);
    } else {
      KEYS[event.key]();
      redraw();
    }
  });
  frame.addEventListener("dblclick", () => {
    if (state.compare) return;
    turnTo(0, 0);
    redraw();
  });

  // -- choices

  const choose = (name, apply) => {
    for (const input of all(`input[name="${name}"]`)) {
      input.addEventListener("change", () => {
        apply(input.value);
        redraw();
      });
    }
  };
  choose("surface", (value) => (state.surface = value));
  choose("look", (value) => {
    state.look = value;
    showLight();
  });

  // -- the lamp

  const disc = at("disc");
  const sliders = { azimuth: at("azimuth"), height: at("height"), strength: at("strength"), room: at("room") };
  const showLight = () => {
    const { azimuth, height, color, strength } = state.lamp;
    sliders.azimuth.value = azimuth;
    sliders.height.value = height;
    sliders.strength.value = strength[state.look];
    sliders.room.value = state.room[state.look];
    at("room-label").textContent = state.look === "photo" ? "Light of the photo" : "Room";
    const [x, y] = discOfLamp(azimuth, height);
    disc.style.setProperty("--x", `${50 + 50 * x}%`);
    disc.style.setProperty("--y", `${50 - 50 * y}%`);
    disc.style.setProperty("--lamp", color);
    disc.style.setProperty("--power", Math.min(strength[state.look], 1));
    at("color").value = color;
    for (const slider of Object.values(sliders)) fill(slider);
  };
  const lightUp = () => {
    // a lamp that is moved is meant to be seen
    if (state.lamp.strength[state.look] === 0) {
      state.lamp.strength[state.look] = 0.9;
      state.room[state.look] = 0.3;
    }
  };
  const moveLamp = (azimuth, height) => {
    Object.assign(state.lamp, { azimuth, height });
    lightUp();
    showLight();
    redraw();
  };
  sliders.azimuth.addEventListener("input", () => moveLamp(Number(sliders.azimuth.value), state.lamp.height));
  sliders.height.addEventListener("input", () => moveLamp(state.lamp.azimuth, Number(sliders.height.value)));
  sliders.strength.addEventListener("input", () => {
    state.lamp.strength[state.look] = Number(sliders.strength.value);
    showLight();
    redraw();
  });
  sliders.room.addEventListener("input", () => {
    state.room[state.look] = Number(sliders.room.value);
    showLight();
    redraw();
  });
  const setColor = (color) => {
    state.lamp.color = color;
    lightUp();
    showLight();
    redraw();
  };
  at("color").addEventListener("input", (event) => setColor(event.target.value));
  for (const swatch of all("[data-color]")) {
    swatch.style.setProperty("--swatch", swatch.dataset.color);
    swatch.addEventListener("click", () => setColor(swatch.dataset.color));
  }
  drag(disc, (x, y) => moveLamp(...lampOfDisc(2 * x - 1, 1 - 2 * y)));
  at("attached").addEventListener("change", (event) => {
    state.attached = event.target.checked;
    redraw();
  });
  at("relight").addEventListener("click", () => {
    Object.assign(state.lamp, { azimuth: -40, height: 30, color: "#ffffff", strength: { photo: 0, studio: 1 } });
    Object.assign(state.room, { photo: 1, studio: 1 });
    showLight();
    redraw();
  });

  // -- expressions

  const rows = [];
  const showWeights = () => {
    rows.forEach(({ slider, output }, k) => {
      slider.value = weights[k];
      output.textContent = Math.round(100 * weights[k]);
      fill(slider);
    });
  };
  const groups = at("groups");
  groupUnits(units).forEach(([title, members], number) => {
    const details = document.createElement("details");
    details.open = number === 0 && matchMedia("(min-width: 60rem)").matches;
    const summary = document.createElement("summary");
    summary.textContent = title;
    const count = document.createElement("span");
    count.textContent = members.length;
    summary.append(count);
    details.append(summary);
    for (const k of members) {
      const label = document.createElement("label");
      label.className = "unit";
      label.title = units[k];
      const text = document.createElement("span");
      text.textContent = unitLabel(units[k]);
      const slider = document.createElement("input");
      Object.assign(slider, { type: "range", min: 0, max: 1, step: 0.01 });
      slider.dataset.unit = units[k];
      slider.setAttribute("aria-label", `${title}: ${unitLabel(units[k])}`);
      const output = document.createElement("output");
      slider.addEventListener("input", () => {
        stopMoving();
        weights[k] = Number(slider.value);
        showWeights();
        markPreset(null);
        redraw();
      });
      label.append(text, slider, output);
      details.append(label);
      rows[k] = { slider, output, label, details };
    }
    groups.append(details);
  });
  at("expression").hidden = !units.length;
  let moving = 0;
  const stopMoving = () => (moving += 1);
  const moveTo = (target) => {
    stopMoving();
    const [own, from, began] = [moving, [...weights], performance.now()];
    const step = (now) => {
      if (own !== moving) return;
      const t = still.matches ? 1 : Math.min((now - began) / 320, 1);
      blend(from, target, ease(t)).forEach((weight, k) => (weights[k] = weight));
      showWeights();
      redraw();
      if (t < 1) requestAnimationFrame(step);
    };
    step(began);
  };
  const presets = at("presets");
  const markPreset = (chosen) => [...presets.children].forEach((button) => button.setAttribute("aria-pressed", button === chosen));
  const offered = [["As fitted", fitted.some((weight) => weight) ? fitted : null]];
  for (const [name, preset] of Object.entries(PRESETS)) offered.push([name, presetWeights(preset, units)]);
  for (const [name, target] of offered.filter(([, target]) => target)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => {
      pause();
      moveTo(target);
      markPreset(button);
    });
    presets.append(button);
  }
  markPreset(presets.firstElementChild);
  const search = at("search");
  search.addEventListener("input", () => {
    const words = search.value.trim().toLowerCase();
    const open = new Set();
    rows.forEach(({ label, details }, k) => {
      const hit = `${units[k]} ${details.firstChild.textContent} ${unitLabel(units[k])}`.toLowerCase().includes(words);
      label.hidden = !hit;
      if (hit) open.add(details);
    });
    for (const details of groups.children) {
      details.hidden = !open.has(details);
      if (words) details.open = open.has(details);
    }
  });

  // -- beside the photo

  const compare = at("compare");
  const divider = at("divider");
  const setDivider = (value) => {
    state.divider = Math.min(Math.max(value, 0), 1);
    frame.style.setProperty("--divider", `${100 * state.divider}%`);
    divider.value = state.divider;
    divider.setAttribute("aria-valuetext", `${Math.round(100 * state.divider)} % photo`);
  };
  const setCompare = (on) => {
    state.compare = on;
    document.body.classList.toggle("comparing", on);
    compare.checked = on;
    controls.enabled = !on;
    pause();
    if (on) {
      file.scene.traverse((node) => node.userData.rest && node.quaternion.copy(node.userData.rest));
      moveTo(fitted);
      markPreset(presets.firstElementChild);
    }
    fit();
  };
  if (data.photo) {
    compare.addEventListener("change", () => setCompare(compare.checked));
    divider.addEventListener("input", () => setDivider(Number(divider.value)));
    drag(frame, (x) => state.compare && setDivider(x));
  } else {
    at("photo-choice").hidden = true;
  }
  setDivider(0.5);

  // -- along a video

  const player = at("player");
  const clip = file.animations[0];
  let mixer = null;
  let last = 0;
  const clock = at("time");
  function pause() {
    state.playing = false;
    at("play").setAttribute("aria-pressed", "false");
    at("play").textContent = "Play";
  }
  if (clip) {
    player.hidden = false;
    mixer = new THREE.AnimationMixer(file.scene);
    const action = mixer.clipAction(clip);
    for (const part of parts) for (let node = part; node; node = node.parent) node.userData.rest = node.quaternion.clone();
    clock.max = clip.duration;
    const seek = (time) => {
      action.play();
      mixer.setTime(time % clip.duration);
      parts[0].morphTargetInfluences.slice(0, units.length).forEach((weight, k) => (weights[k] = weight));
      clock.value = time % clip.duration;
      fill(clock);
      showWeights();
      redraw();
    };
    const step = (now) => {
      if (!state.playing) return;
      seek(Number(clock.value) + Math.min((now - last) / 1000, 0.1));
      last = now;
      requestAnimationFrame(step);
    };
    at("play").addEventListener("click", () => {
      if (state.playing) return pause();
      if (state.compare) setCompare(false);
      stopMoving();
      markPreset(null);
      state.playing = true;
      at("play").setAttribute("aria-pressed", "true");
      at("play").textContent = "Pause";
      last = performance.now();
      requestAnimationFrame(step);
    });
    clock.addEventListener("input", () => {
      pause();
      if (state.compare) setCompare(false);
      seek(Number(clock.value));
    });
  }

  // -- the file

  const link = at("download");
  link.href = URL.createObjectURL(new Blob([glb], { type: "model/gltf-binary" }));
  link.download = data.file;

  showLight();
  showWeights();
}

/** Show how far a slider is. */
function fill(slider) {
  const share = (slider.value - slider.min) / (slider.max - slider.min);
  slider.style.setProperty("--share", `${100 * share}%`);
}

/** Call ``moved`` with the place (0 to 1) of a pointer that is held down on an element. */
function drag(element, moved) {
  const tell = (event) => {
    const box = element.getBoundingClientRect();
    moved((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  };
  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    element.setPointerCapture(event.pointerId);
    tell(event);
  });
  element.addEventListener("pointermove", (event) => element.hasPointerCapture(event.pointerId) && tell(event));
}
