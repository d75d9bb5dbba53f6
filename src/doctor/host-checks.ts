/** What of the host, its limits and its file systems concerns loading. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { addonPath } from '../native/addon.js';
import { libcOfProcess, textOf } from '../native/missing-addon.js';
import { check, type DoctorCheck, messageOf } from './check.js';
import type { Answer } from './run-probe.js';

const MiB = 2 ** 20;
/** What 3FS's buffer and a ring of GPUDirect Storage lock. */
export const LOCKED_BYTES: number = 48 * MiB;
const FEW_FILES = 1024;
/** As kMaxOpenFilesLimit of csrc/reader/usrbio/usrbio_api.h. */
const MANY_FILES = 2 ** 20;

export function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

/** What a probe answered, where it did. */
export function answered<T>(answer: Answer<T>): T | undefined {
  return answer.failure === undefined ? answer.value : undefined;
}

/** What is said of all that needs the addon where that does not load. */
export const WITHOUT_ADDON = 'not looked at: the addon does not load';

/** The addon, by what loads it in a process of its own. */
export function addonCheck(answer: Answer<string>): DoctorCheck {
  const name = 'addon';
  // What ends the process that loads it would end this one.
  if (answer.failure !== undefined && /^(crashed|ended the process|no answer)/.test(answer.failure))
    return check('broken', name, answer.failure, 'report this, with the output of doctor --json');
  try {
    const path = addonPath();
    if (answer.failure !== undefined)
      return check('broken', name, `${path}: ${answer.failure}`, 'report this, with the output of doctor --json');
    const needs = newestSymbol(path);
    const kind = /[\\/]prebuilds[\\/]/.test(path) ? 'prebuilt' : 'built from source';
    return check('ok', name, `${kind}${needs && `, needs glibc ${needs}`}: ${path}`);
  } catch (error) {
    const [what, ...lines] = messageOf(error).split('\n');
    return check('broken', name, what!, lines.join('\n') || 'load weights on Linux, as in a container');
  }
}

/** The newest version of glibc's symbols that a binary asks for; '' for none. */
function newestSymbol(path: string): string {
  const versions = [
    ...readFileSync(path)
      .toString('latin1')
      .matchAll(/GLIBC_2\.(\d+)/g),
  ].map(([, minor]) => Number(minor));
  return versions.length === 0 ? '' : `2.${Math.max(...versions)}`;
}

export function nodeCheck(): DoctorCheck {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  const detail = `${process.version}, ${process.platform} ${process.arch}, ${textOf(libcOfProcess())}`;
  const old = major < 20 || (major === 20 && minor < 19);
  return old ? check('broken', 'node', detail, 'install Node.js 20.19 or later') : check('ok', 'node', detail);
}

/** A limit of this process: its soft value, Infinity for none; undefined where it cannot be read. */
function limitOf(title: string): number | undefined {
  const line = readText('/proc/self/limits')
    .split('\n')
    .find((text) => text.startsWith(title));
  const soft = line?.slice(title.length).trim().split(/\s+/)[0];
  if (soft === undefined) return undefined;
  return soft === 'unlimited' ? Number.POSITIVE_INFINITY : Number(soft);
}

function bytesText(bytes: number): string {
  return Number.isFinite(bytes) ? `${Math.floor((10 * bytes) / MiB) / 10} MiB` : 'unlimited';
}

/** `needed`: a 3FS is mounted here. */
export function memlockCheck(needed: boolean): DoctorCheck {
  const name = 'memlock';
  const limit = limitOf('Max locked memory');
  if (limit === undefined) return check('missing', name, '/proc/self/limits does not say');
  if (limit >= LOCKED_BYTES) return check('ok', name, bytesText(limit));
  const needs = bytesText(LOCKED_BYTES);
  const detail = `${bytesText(limit)}: the shared buffer of a 3FS takes ${needs}, other loads nothing`;
  const remedy = 'ulimit -l unlimited, docker run --ulimit memlock=-1, or LimitMEMLOCK=infinity of systemd';
  return check(needed ? 'broken' : 'missing', name, detail, remedy);
}

export function nofileCheck(): DoctorCheck {
  const name = 'nofile';
  const limit = limitOf('Max open files');
  if (limit === undefined) return check('missing', name, '/proc/self/limits does not say');
  if (limit < FEW_FILES) {
    const detail = `${limit} open files: loads of many shards wait for each other`;
    return check('missing', name, detail, `ulimit -n 65536, or docker run --ulimit nofile=65536`);
  }
  if (limit > MANY_FILES) {
    const many = Number.isFinite(limit) ? limit : 'unlimited';
    const detail = `${many}: the 3FS client takes memory for each, a load lowers it`;
    return check('ok', name, detail, `ulimit -Hn ${MANY_FILES} where 3FS is used`);
  }
  return check('ok', name, `${limit} open files`);
}

interface SystemProbe {
  readonly ioUring: string;
  readonly memoryPlacement: string;
}

export function ioUringCheck(answer: Answer<SystemProbe>): DoctorCheck {
  const name = 'io_uring';
  const then = 'files are read past the page cache by threads, in about the same time';
  if (answer.failure !== undefined) return check('missing', name, `${answer.failure}; ${then}`);
  const { ioUring } = answer.value;
  if (ioUring === '') return check('ok', name, 'allowed; reads past the page cache are made by it');
  const disabled = readText('/proc/sys/kernel/io_uring_disabled').trim();
  const why = disabled === '1' || disabled === '2' ? `, kernel.io_uring_disabled is ${disabled}` : '';
  return check('missing', name, `refused: ${ioUring}${why}; ${then}`);
}

export function hugePagesCheck(): DoctorCheck {
  const name = 'huge pages';
  const file = '/sys/kernel/mm/transparent_hugepage/enabled';
  const setting = /\[(\w+)\]/.exec(readText(file))?.[1];
  if (setting === 'always' || setting === 'madvise') return check('ok', name, `transparent huge pages: ${setting}`);
  const detail = setting ? `transparent huge pages: ${setting}` : `the kernel has none (${file})`;
  const then = 'memory of weights is filled at half the speed';
  return check('missing', name, `${detail}; ${then}`, setting && `echo madvise > ${file}`);
}

/** `gpuNodes`: of the GPUs, -1 where unknown. */
export function numaCheck(answer: Answer<SystemProbe>, gpuNodes: readonly number[]): DoctorCheck {
  const name = 'numa';
  const nodes = existsSync('/sys/devices/system/node')
    ? readdirSync('/sys/devices/system/node').filter((entry) => /^node\d+$/.test(entry)).length
    : 0;
  const known = gpuNodes.filter((node) => node >= 0);
  const gpus = known.length > 0 ? `, GPUs on ${known.join(', ')}` : '';
  if (nodes <= 1) return check('ok', name, `one node${gpus}`);
  const refused = answer.failure ?? answered(answer)?.memoryPlacement;
  if (!refused) return check('ok', name, `${nodes} nodes${gpus}; memory can be placed`);
  const detail = `${nodes} nodes${gpus}; memory cannot be placed near a GPU: ${refused}`;
  return check('missing', name, detail, 'docker run --cap-add SYS_NICE, or option setNuma: false');
}

interface FileProbe {
  readonly path: string;
  readonly lease: string;
  readonly residentRead: string;
  readonly residentMap: string;
  readonly cacheCounts: string;
  readonly direct: string;
}

export function pageCacheCheck(answer: Answer<FileProbe>, folder: string): DoctorCheck {
  const name = 'page cache';
  const elsewhere = 'name a folder of your models: npx fastsafetensors-node doctor FOLDER';
  if (answer.failure !== undefined) return check('missing', name, `${folder}: ${answer.failure}`, elsewhere);
  const { path, residentRead, residentMap, cacheCounts, direct } = answer.value;
  const tried: [what: string, refused: string][] = [
    ['RWF_NOWAIT', residentRead],
    ['mincore', residentMap],
    ['cachestat', cacheCounts],
    ['O_DIRECT', direct],
  ];
  const works = tried.flatMap(([what, refused]) => (refused ? [] : [what])).join(', ') || 'nothing';
  const others = tried.flatMap(([what, refused]) => (refused ? [`${what}: ${refused}`] : [])).join(', ');
  const detail = `${path}: ${works}${others && `; not ${others}`}`;
  return check(residentRead && residentMap ? 'missing' : 'ok', name, detail);
}

export function leasesCheck(answer: Answer<FileProbe>, folder: string): DoctorCheck {
  const name = 'leases';
  const elsewhere = 'name a folder of your models: npx fastsafetensors-node doctor FOLDER';
  if (answer.failure !== undefined) return check('missing', name, `${folder}: ${answer.failure}`, elsewhere);
  const { path, lease } = answer.value;
  const seconds = readText('/proc/sys/fs/lease-break-time').trim();
  if (lease === '') return check('ok', name, `${path}: a read lease is given; who writes waits up to ${seconds} s`);
  const disabled = readText('/proc/sys/fs/leases-enable').trim() === '0';
  const detail = `${path}: no read lease: ${lease}; files are copied and not mapped`;
  const why = disabled
    ? 'sysctl fs.leases-enable=1'
    : 'own the files, or load as root (CAP_LEASE), on a local file system';
  return check('missing', name, detail, why);
}
