// llama.cpp through node-llama-cpp: a peer of turns.py, which says what a peer prints.
//
//     node llama_cpp.mjs FOLDER MODEL.gguf cpu|vulkan ROUNDS       FOLDER: where node_modules lies
//
// pp512 and tg128 as llama-bench has them, with greedy sampling, which `fourbit bench model/generation` does too. All options that
// say how to compute are llama.cpp's defaults; threads are the machine's.
import {createInterface} from "node:readline";
import {createRequire} from "node:module";
import {availableParallelism} from "node:os";
import {pathToFileURL} from "node:url";

const [folder, path, backend, rounds] = process.argv.slice(2);
const entry = createRequire(`${folder}/`).resolve("node-llama-cpp");
const {getLlama, getModuleVersion} = await import(pathToFileURL(entry));
const gpu = backend === "vulkan" && "vulkan";
const threads = availableParallelism();
const llama = await getLlama({gpu, build: "never", skipDownload: true, maxThreads: threads, logLevel: "error"});
const model = await llama.loadModel({modelPath: path, gpuLayers: gpu ? "max" : 0});
const context = await model.createContext({contextSize: 640, batchSize: 512, threads});
const sequence = context.getSequence();
// As `fourbit bench` has them.
const prompt = Array.from({length: 512}, (_, i) => i * 7919 % 49152);

async function timed(run) {
  await sequence.clearHistory();
  const [start, before] = [performance.now(), process.cpuUsage()];
  await run();
  const wall = performance.now() - start, {user, system} = process.cpuUsage(before);
  return [wall / 1e3, (user + system) / 1e6];
}

async function generate() {
  let left = 128;
  for await (const _ of sequence.evaluate(prompt.slice(0, 1), {temperature: 0, yieldEogToken: true})) if (--left === 0) break;
  if (left > 0) throw new Error(`${left} tokens were not generated`);
}

const cases = {pp512: () => sequence.evaluateWithoutGeneratingNewTokens(prompt), tg128: generate};
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
for (const run of Object.values(cases)) await timed(run); // compiles
const devices = gpu ? await llama.getGpuDeviceNames() : [];
const place = gpu ? `Vulkan on ${devices}, ${model.gpuLayers} layers there` : `${threads} threads, ${llama.systemInfo}`;
say({ready: `node-llama-cpp ${await getModuleVersion()}, llama.cpp ${llama.llamaCppRelease.release}, ${place}`});
for await (const _ of createInterface({input: process.stdin})) {
  const times = {};
  for (const [name, run] of Object.entries(cases)) {
    times[name] = [];
    for (let i = 0; i < rounds; i++) times[name].push(await timed(run));
  }
  say(times);
}
process.exit(0);
