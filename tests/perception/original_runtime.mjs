// Records what the packages' own runtime (TensorFlow.js, CPU backend) makes of a synthetic picture.
// Oracle of test_original_runtime.py; run by hand when a package changes:
//   node original_runtime.mjs FACE_API/package HUMAN_MODELS/package > original_runtime.json
import fs from 'fs'
import path from 'path'
import { pathToFileURL } from 'url'

const [faceApi, humanModels] = process.argv.slice(2).map(folder => path.resolve(folder))

// The bundle takes node for a browser without `fetch`; hidden from it, it asks for a platform, which this is.
const node = globalThis.process
globalThis.process = { versions: {}, env: {} }
const api = await import(pathToFileURL(path.join(faceApi, 'dist/face-api.esm.js')))
globalThis.process = node
const tf = api.tf
tf.env().setPlatform('plain', {
  now: () => performance.now(),
  encode: text => new TextEncoder().encode(text),
  decode: bytes => new TextDecoder().decode(bytes),
  isTypedArray: array => ArrayBuffer.isView(array),
  setTimeoutCustom: (callback, delay) => setTimeout(callback, delay),
})
await tf.setBackend('cpu')
await tf.ready()

function pattern(size, scale) {
  const values = []
  for (let y = 0; y < size; y++)
    for (let x = 0; x < size; x++)
      for (let c = 0; c < 3; c++)
        values.push(0.5 + 0.5 * Math.sin(0.11 * x * (c + 1) + 0.07 * y + 0.9 * c) * Math.cos(0.05 * y - 0.0013 * x * y))
  return tf.mul(tf.tensor3d(values, [size, size, 3]), scale)
}

const read = (...parts) => JSON.parse(fs.readFileSync(path.join(...parts)))
const bytes = files => {
  const all = Buffer.concat(files.map(file => fs.readFileSync(file)))
  return all.buffer.slice(all.byteOffset, all.byteOffset + all.byteLength)
}
const results = {}
// of each output: its length, its Euclidean norm, and up to 24 evenly spaced values
function record(name, tensors) {
  results[name] = tensors.map(tensor => {
    const values = Array.from(tensor.dataSync())
    const count = Math.min(24, values.length)
    const at = Array.from({ length: count }, (_, i) => Math.floor((i * values.length) / count))
    const norm = Math.sqrt(values.reduce((sum, v) => sum + v * v, 0))
    return { length: values.length, norm: +norm.toPrecision(7), at, values: at.map(i => +values[i].toPrecision(7)) }
  })
}

async function faceApiNet(name, model, net, size, run) {
  const groups = read(faceApi, 'model', `${model}_model-weights_manifest.json`)
  const weights = bytes([path.join(faceApi, 'model', `${model}_model.bin`)])
  net.loadFromWeightMap(tf.io.decodeWeights(weights, groups.flatMap(group => group.weights)))
  record(name, [run(net, new api.NetInput([pattern(size, 255)]))].flat())
}
const forward = (net, input) => net.forwardInput(input)
await faceApiNet('face_detector', 'tiny_face_detector', new api.TinyFaceDetector(), 224, (n, i) => n.forwardInput(i, 224))
await faceApiNet('landmarks68', 'face_landmark_68', new api.FaceLandmark68Net(), 112, (n, i) => n.runNet(i))
await faceApiNet('expression7', 'face_expression', new api.FaceExpressionNet(), 112, (n, i) => n.runNet(i))
await faceApiNet('identity128', 'face_recognition', new api.FaceRecognitionNet(), 150, forward)
await faceApiNet('age_gender', 'age_gender', new api.AgeGenderNet(), 112, (n, i) => Object.values(forward(n, i)))

async function graph(name, model, size, scale, outputs) {
  const json = read(humanModels, 'models', `${model}.json`)
  const weightSpecs = json.weightsManifest.flatMap(group => group.weights)
  const files = json.weightsManifest.flatMap(group => group.paths).map(file => path.join(humanModels, 'models', file))
  const net = await tf.loadGraphModel({ load: async () => ({ ...json, weightSpecs, weightData: bytes(files) }) })
  const signature = (json.signature ?? json.userDefinedMetadata?.signature)?.outputs ?? {}
  const nodes = outputs.map(output => (signature[output]?.name ?? output).replace(/:0$/, ''))
  record(name, [net.execute(tf.expandDims(pattern(size, scale)), nodes)].flat())
}
await graph('faceres1024', 'faceres', 224, 255, ['global_pooling/Mean'])
fs.writeSync(1, JSON.stringify(results, null, 1).replace(/\n {3,}|\n {2}(?=[\]}])/g, ' ') + '\n')
