// Compiles WGSL files with Tint: a module and a pipeline of Dawn's null backend, under WebGPU's default limits.
//
//   node tint.mjs PACKAGE LIST FIRST
//
// PACKAGE is the folder of the npm package `webgpu`. LIST, FIRST and what is printed are as in hlsl.c; a third column
// `subgroups` prepends `enable subgroups;`, as a browser build must: naga does not know that line, so sources go without.
import fs from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'

const [folder, list, first] = process.argv.slice(2)
const { create, globals } = await import(pathToFileURL(path.resolve(folder, 'index.js')).href)
Object.assign(globalThis, globals)
// Kept for the life of the process: once it is collected, its devices die.
globalThis.gpu = create(['backend=null'])

const device = async (features) => {
  const adapter = await globalThis.gpu.requestAdapter()
  return adapter.requestDevice({ requiredFeatures: features })
}
const features = { baseline: [], subgroups: ['subgroups'] }
const devices = {}

const messages = async (device, code, entryPoint) => {
  device.pushErrorScope('internal')
  device.pushErrorScope('validation')
  const module = device.createShaderModule({ code })
  let thrown = null
  try {
    await device.createComputePipelineAsync({ layout: 'auto', compute: { module, entryPoint } })
  } catch (error) {
    thrown = error.message
  }
  const scopes = [await device.popErrorScope(), await device.popErrorScope()]
  return [thrown, ...scopes.map((error) => error?.message)].filter(Boolean)
}

for (const line of fs.readFileSync(list, 'utf8').split('\n').filter(Boolean).slice(Number(first))) {
  const [file, entry, needs] = line.split('\t')
  if (!features[needs]) throw new Error(`${list}: ${file} needs ${needs}; expected one of ${Object.keys(features)}`)
  devices[needs] ??= await device(features[needs])
  const code = (needs === 'subgroups' ? 'enable subgroups;\n' : '') + fs.readFileSync(file, 'utf8')
  fs.writeSync(1, `${file}\t`)
  const before = process.cpuUsage()
  const said = await messages(devices[needs], code, entry)
  const { user, system } = process.cpuUsage(before)
  const took = Math.round((user + system) / 1000)
  const text = said.join(' ').replace(/\s+/g, ' ').slice(0, 400)
  fs.writeSync(1, `${took}\t${said.length ? 'failed' : 'passed'}\t${text}\n`)
}
process.exit(0)
