/** What `files` may mean when it is no file, and no folder with weights in it; and what to do then. */
import { join } from 'node:path';
import { FastSafetensorsError, InvalidArgumentError } from '../base/errors.js';
import { listed } from '../base/listed.js';
import type { FileCalls } from '../base/waiting.js';
import { type FileInfo, readdir } from '../native/addon.js';
import { cachedRepository } from './hub-cache.js';

const PATTERN = /[*?[\]{}]/;
const HUB_NAME = /^[\w-][\w.-]*\/[\w.-]+$/;

/** Whether refusePattern() may refuse it: worth a look whether it exists. */
export const mayBeNoPath = (path: string): boolean => PATTERN.test(path) || isHubName(path);

const isHubName = (path: string): boolean => HUB_NAME.test(path) && !/\.(safetensors|json)$/.test(path);

/**
 * Refuses a path that does not exist and looks like something else: INVALID_ARGUMENT for a pattern, IO_ERROR for the
 * name of a model of the Hugging Face hub. Returns for others.
 */
export async function refusePattern(path: string, cause: unknown, calls?: FileCalls): Promise<void> {
  if (PATTERN.test(path)) {
    const found = `files: nothing is called ${JSON.stringify(path)}, and patterns are not expanded`;
    throw new InvalidArgumentError(`${found}; pass the folder, or a list of files`);
  }
  if (!isHubName(path)) return;
  const cached = await cachedRepository(path, calls);
  const how = cached
    ? `pass its folder in the cache, ${cached}`
    : `download it first: \`hf download ${path}\` prints its folder`;
  const message = `cannot open ${path}: ${(cause as Error).message}; if it is a model of the Hugging Face hub, ${how}`;
  throw new FastSafetensorsError('IO_ERROR', message, { path, cause });
}

/** The most folders that are looked into for a hint. */
const MAX_HINTS = 50;

/** NO_FILES for a folder without weights, with what it has instead. */
export async function nothingHere(
  folder: string,
  entries: readonly FileInfo[],
  calls?: FileCalls,
): Promise<FastSafetensorsError> {
  const names = entries.map(({ name }) => name).sort();
  const message = `${folder} has neither a *.safetensors.index.json nor any *.safetensors`;
  const hint = (what: string) => new FastSafetensorsError('NO_FILES', `${message}; ${what}`, { path: folder });

  const folders = entries.filter((entry) => entry.isDirectory() && !entry.name.startsWith('.')).slice(0, MAX_HINTS);
  const inside = await Promise.all(folders.map(({ name }) => readdir(join(folder, name), calls).catch(() => [])));
  const models = folders.filter((_, i) => inside[i]!.some(({ name }) => /^[^.].*\.safetensors$/.test(name)));
  if (models.length > 0) return hint(`these folders of it do: ${listed(models.map(({ name }) => name).sort())}`);
  const unfinished = names.filter((name) => /\.(incomplete|part|aria2|crdownload|tmp)$/.test(name));
  if (unfinished.length > 0) return hint(`of an unfinished download it has ${listed(unfinished)}: download it again`);
  const others = names.filter((name) => /\.(bin|ckpt|gguf|h5|msgpack|npz|onnx|pt|pth|tflite)$/.test(name));
  if (others.length > 0) return hint(`weights of other formats are there: ${listed(others)}`);
  return new FastSafetensorsError('NO_FILES', message, { path: folder });
}
