/** GPUs, cuFile, NCCL, 3FS with its mounts, and /dev/shm. */
import { existsSync, readdirSync, readlinkSync, statSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { counted } from '../base/counted.js';
import type { Availability } from '../copiers/availability.js';
import type { DeviceInfo } from '../native/core.js';
import { check, type DoctorCheck, messageOf } from './check.js';
import { LOCKED_BYTES, readText } from './host-checks.js';
import type { Answer } from './run-probe.js';

interface Gpus {
  readonly gpus: readonly DeviceInfo[];
  readonly reason: string;
}

const NVIDIA = '0x10de';
const NO_NCCL = /: libnccl\.so\.2: cannot open shared object file: No such file/;
const NO_LIBRARY = /: cannot open shared object file: No such file/;

export function gpuCheck(answer: Answer<Gpus>): DoctorCheck {
  const name = 'gpu';
  const remedy = 'look at nvidia-smi; in a container: docker run --gpus all';
  if (answer.failure !== undefined) return check('broken', name, answer.failure, remedy);
  const { gpus, reason } = answer.value;
  const [first] = gpus;
  if (first) {
    const { driverVersion, library } = first;
    const version = `${Math.floor(driverVersion / 1000)}.${Math.floor((driverVersion % 1000) / 10)}`;
    const kernel = /Kernel Module\s+(?:for \S+\s+)?([\d.]+)/.exec(readText('/proc/driver/nvidia/version'))?.[1];
    const models = gpus.map(({ model, computeCapability }, i) => `cuda:${i} ${model} (${computeCapability})`);
    const driver = `driver ${kernel ? `${kernel}, ` : ''}CUDA ${version}, ${library}`;
    return check('ok', name, `${counted(gpus.length, 'GPU')}: ${models.join(', ')}; ${driver}`);
  }
  const noDriver = !process.env.FASTSAFETENSORS_CUDA_LIB && NO_LIBRARY.test(reason);
  if (!hasNvidia() && (noDriver || /CUDA_ERROR_NO_DEVICE/.test(reason)))
    return check('missing', name, "none: device 'cpu' loads", 'none is needed; where there is one, install its driver');
  return check('broken', name, reason, remedy);
}

/** Whether a GPU of NVIDIA is in this machine, or its kernel driver is loaded. */
function hasNvidia(): boolean {
  if (existsSync('/proc/driver/nvidia/version')) return true;
  const devices = '/sys/bus/pci/devices';
  try {
    return readdirSync(devices).some((device) => {
      const of = (file: string): string => readText(join(devices, device, file)).trim();
      return of('vendor') === NVIDIA && of('class').startsWith('0x03');
    });
  } catch {
    return false;
  }
}

type Cufile = Availability & { readonly refused?: string; readonly failed?: string };

/** `gpu`: the check of it. */
export function cufileCheck(answer: Answer<Cufile>, gpu: DoctorCheck, folder: string): DoctorCheck {
  const name = 'cufile';
  if (gpu.state !== 'ok') return check('missing', name, 'not looked at: there is no GPU that works');
  if (answer.failure !== undefined) return check('broken', name, answer.failure, "use copier: 'nogds'");
  const { available, reason = '', remedy, library, version, refused, failed } = answer.value;
  const which = library ? `${library}${version ? ` ${version}` : ''}` : '';
  if (!available) {
    const absent = library !== undefined || (NO_LIBRARY.test(reason) && !process.env.FASTSAFETENSORS_CUFILE_LIB);
    return check(absent ? 'missing' : 'broken', name, `${which && `${which}: `}${reason}`, remedy);
  }
  if (failed) return check('broken', name, `${which}: ${failed}`, "use copier: 'nogds'");
  if (refused) {
    const where = 'name a folder of your models, on ext4 or xfs over NVMe: npx fastsafetensors-node doctor FOLDER';
    return check('missing', name, `${which}: refuses files in ${folder}: ${refused}`, where);
  }
  return check('ok', name, `${which}: reads files in ${folder} directly into the GPU`);
}

interface ThreeFs {
  readonly library: string;
  readonly failed: string;
}

/** Where a 3FS is mounted, by /proc/self/mountinfo, which touches no mount. */
export function threeFsMounts(mountinfo: string = readText('/proc/self/mountinfo')): string[] {
  return mountinfo
    .split('\n')
    .filter((line) => / - fuse\.hf3fs /.test(line))
    .map((line) => line.split(' ')[4]!.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(parseInt(octal, 8))));
}

export function threeFsCheck(answer: Answer<ThreeFs>, mounted: boolean): DoctorCheck {
  const name = '3fs library';
  const remedy = 'install the 3FS client, or set FASTSAFETENSORS_3FS_LIB to its library';
  if (answer.failure !== undefined) return check('broken', name, answer.failure, remedy);
  const { library, failed } = answer.value;
  if (failed === '') return check('ok', name, library);
  const absent = library === '' && !process.env.FASTSAFETENSORS_3FS_LIB;
  if (absent && !mounted) return check('missing', name, `none: copier '3fs' is not available`, remedy);
  return check('broken', name, failed, remedy);
}

export function ncclCheck(answer: Answer<{ library: string; version: string } | { failed: string }>): DoctorCheck {
  const name = 'nccl';
  const remedy = 'install NCCL 2.14 or a later 2.x, or set FASTSAFETENSORS_NCCL_LIB to its library';
  if (answer.failure !== undefined) return check('broken', name, answer.failure, remedy);
  const found = answer.value;
  if (!('failed' in found)) return check('ok', name, `${found.version}, ${found.library}`);
  const absent = !process.env.FASTSAFETENSORS_NCCL_LIB && NO_NCCL.test(found.failed);
  if (absent) return check('missing', name, 'none: ranks load without pg.broadcast', remedy);
  return check('broken', name, found.failed, remedy);
}

/** `points`, and for each what its daemon answered. */
export function mountsCheck(points: readonly string[], answers: readonly Answer<number>[]): DoctorCheck {
  const name = '3fs mounts';
  if (points.length === 0) {
    const detail = '/proc/self/mountinfo has none of type fuse.hf3fs';
    return check('missing', name, detail, 'mount 3FS (hf3fs_fuse), or make its mount visible in this container');
  }
  const dead = points.flatMap((point, i) => {
    const { failure } = answers[i]!;
    if (failure === undefined) return [];
    return [failure.startsWith(`${point}: `) ? failure : `${point}: ${failure}`];
  });
  if (dead.length === 0) return check('ok', name, points.join(', '));
  return check('broken', name, dead.join('\n'), 'restart hf3fs_fuse, or unmount what it has left behind');
}

/** PROC_IPC_INIT_INO of Linux: the IPC namespace of the host. */
const HOST_IPC = 'ipc:[4026531839]';

/** `needed`: a 3FS is mounted here. */
export async function shmCheck(needed: boolean): Promise<DoctorCheck> {
  const name = '/dev/shm';
  const bad = needed ? 'broken' : 'missing';
  const share = 'share it with the hf3fs_fuse daemon: docker run --ipc=host';
  let free: number;
  let size: number;
  try {
    const { bavail, blocks, bsize } = await statfs(name);
    [free, size] = [bavail * bsize, blocks * bsize];
  } catch (error) {
    return check(bad, name, messageOf(error), `mount a tmpfs there; ${share}`);
  }
  const mib = (bytes: number): string => `${Math.floor(bytes / 2 ** 20)} MiB`;
  const whose = ownerOfShm();
  const detail = `${mib(size)}, ${mib(free)} free, ${whose.text}`;
  if (free < LOCKED_BYTES) {
    const enlarge = 'enlarge it: mount -o remount,size=1g /dev/shm, docker run --shm-size 1g';
    return check(bad, name, `${detail}: 3FS's shared buffer takes ${mib(LOCKED_BYTES)}`, enlarge);
  }
  if (whose.shared === false)
    return check(needed ? 'broken' : 'ok', name, detail, needed ? share : `for 3FS, ${share}`);
  return check('ok', name, detail);
}

/** Whether /dev/shm is the host's; `shared` is undefined where that cannot be told. */
function ownerOfShm(): { text: string; shared?: boolean } {
  const deviceOf = (path: string): number | undefined => {
    try {
      return statSync(path).dev;
    } catch {
      return undefined;
    }
  };
  const first = deviceOf('/proc/1/root/dev/shm');
  if (first !== undefined && first !== deviceOf('/dev/shm'))
    return { text: 'private: process 1 has another one', shared: false };
  let ipc = '';
  try {
    ipc = readlinkSync('/proc/self/ns/ipc');
  } catch {
    // Without /proc nothing is known.
  }
  if (ipc === '') return { text: 'not known whether it is the host’s' };
  if (ipc !== HOST_IPC) return { text: 'private: this container has an IPC namespace of its own', shared: false };
  return { text: 'the host’s', shared: true };
}
