import { access, readFile } from 'node:fs/promises';
import { environmentSwitch } from '../base/checks.js';
import { FastSafetensorsError } from '../base/errors.js';
import { type Device, openDevice } from '../device/device.js';
import { native, settled } from '../native/addon.js';
import type { NativeDevice } from '../native/core.js';

/** Whether a copier can be used on a device, and what it rests on. */
export interface Availability {
  /** The copier: of 'auto' the one that it would choose for files that are not on 3FS. */
  copier?: string;
  /** What reads: 'usrbio', 'cufile' or 'pread'. Absent for a copier of your own. */
  backend?: string;
  available: boolean;
  /** Why it is not available; for an available copier, what may still fail. */
  reason?: string;
  /** What to do when it is not available. */
  remedy?: string;
  /** Path of the library that the copier loads. */
  library?: string;
  /** Version of that library. */
  version?: string;
}

const NVIDIA_FS = '/proc/driver/nvidia-fs';
const USE_NOGDS = "use copier: 'nogds'";
const USE_CUDA = `use device: 'cuda', or ${USE_NOGDS}`;
const BY_NAME = "naming it (copier: 'gds') still loads, through the CPU in compatibility mode";

function unavailable<T extends object>(reason: string, remedy: string, found = {} as T): Availability & T {
  return { available: false, reason, remedy, ...found };
}

/** What the driver says of the device, or why it is unavailable. */
async function probe(device: Device): Promise<Availability & { library: string; integrated: boolean }> {
  try {
    const { library, driverVersion, integrated } = native().deviceInfo(await openDevice(device));
    const version = `${Math.floor(driverVersion / 1000)}.${Math.floor((driverVersion % 1000) / 10)}`;
    return { available: true, library, version, integrated };
  } catch (error) {
    return unavailable((error as Error).message, "use device: 'cpu'", { library: '', integrated: false });
  }
}

/** Ordinary reads work wherever the device does. */
export async function nogdsAvailability(device: Device): Promise<Availability> {
  const { integrated: _, library, version, ...found } = await probe(device);
  return library === '' ? found : { ...found, library, version };
}

/**
 * GPUDirect Storage: the library loads, and there is a direct path from storage to the GPU. Without one cuFile silently
 * reads through the host (its compatibility mode), which 'nogds' does better. Does not open cuFile's driver, which can
 * take ten seconds: the path is the kernel driver nvidia-fs, or PCI peer-to-peer where cufile.json turns it on.
 */
export async function gdsAvailability(device: Device): Promise<Availability> {
  if (device.type === 'cpu') {
    return unavailable('GPUDirect Storage reads into the memory of a GPU, the device is cpu', USE_CUDA);
  }
  const { available, reason, remedy, library: driver } = await probe(device);
  if (!available) return { available, reason, remedy };
  if (driver === '') return unavailable(`the device ${device} has no CUDA driver`, USE_NOGDS);
  let library: { library: string; version?: string };
  try {
    const { library: path, version } = await settled(native().probeCufile());
    library = version === '' ? { library: path } : { library: path, version };
  } catch (error) {
    return unavailable((error as Error).message, USE_NOGDS);
  }
  const settings = await cufileSettings();
  if (settings.forceCompat) {
    const reason = 'CUFILE_FORCE_COMPAT_MODE makes cuFile read through the host (compatibility mode)';
    return unavailable(reason, `unset it, or ${USE_NOGDS}; ${BY_NAME}`, library);
  }
  const nvidiaFs = await access(NVIDIA_FS).then(
    () => true,
    () => false,
  );
  if (!nvidiaFs && !settings.peerToPeer) {
    const { path, allowCompat } = settings;
    const then = allowCompat ? 'cuFile would read through the host (compatibility mode)' : 'cuFile would not open';
    return unavailable(
      `the kernel driver nvidia-fs is not loaded (there is no ${NVIDIA_FS}) ` +
        `and ${path} does not turn on PCI peer-to-peer, so that ${then}`,
      `load nvidia-fs (modprobe nvidia-fs), or set use_pci_p2pdma in ${path} where the kernel has it, ` +
        `or ${USE_NOGDS}${allowCompat ? `; ${BY_NAME}` : ''}`,
      library,
    );
  }
  return { available: true, ...library };
}

interface CufileSettings {
  readonly path: string;
  readonly allowCompat: boolean;
  readonly peerToPeer: boolean;
  readonly forceCompat: boolean;
}

/** What cufile.json says (JSON with // comments); cuFile's own defaults for the rest and where it is unreadable. */
async function cufileSettings(): Promise<CufileSettings> {
  const path = process.env.CUFILE_ENV_PATH_JSON || '/etc/cufile.json';
  const text = await readFile(path, 'utf8').catch(() => '');
  const lines = text.split('\n').map((line) => line.replace(/^\s*\/\/.*|\s\/\/.*/, ''));
  const flag = (name: string, otherwise: boolean): boolean => {
    const found = new RegExp(`"${name}"\\s*:\\s*(true|false)`).exec(lines.join('\n'));
    return found ? found[1] === 'true' : otherwise;
  };
  return {
    path,
    allowCompat: flag('allow_compat_mode', true),
    peerToPeer: flag('use_pci_p2pdma', false),
    forceCompat: /^(1|true)$/i.test(process.env.CUFILE_FORCE_COMPAT_MODE ?? ''),
  };
}

/**
 * Memory that host and GPU share: where the GPU has none of its own. FASTSAFETENSORS_UNIFIED_MEM=1 takes it on any GPU
 * (managed memory then moves when it is touched), 0 on none.
 */
export async function unifiedAvailability(device: Device): Promise<Availability> {
  if (device.type === 'cpu') {
    return unavailable('unified memory is what a GPU shares with the host, the device is cpu', USE_CUDA);
  }
  const { integrated, library, version, ...found } = await probe(device);
  if (!found.available) return found;
  const driver = library === '' ? {} : { library, version };
  const wish = environmentSwitch('FASTSAFETENSORS_UNIFIED_MEM');
  if (wish === false)
    return unavailable('FASTSAFETENSORS_UNIFIED_MEM=0 forbids unified memory', `unset it, or ${USE_NOGDS}`, driver);
  if (library === '' || (!integrated && wish !== true)) {
    const remedy = `${USE_NOGDS}, or set FASTSAFETENSORS_UNIFIED_MEM=1 to use managed memory all the same`;
    return unavailable(`${device} has memory of its own: it does not share the host's`, remedy, driver);
  }
  return { available: true, ...driver };
}

/** openDevice() with memory that the host shares. DEVICE_UNAVAILABLE, COPIER_UNAVAILABLE. */
export async function openUnified(device: Device, near?: boolean): Promise<NativeDevice> {
  await openDevice(device);
  const { available, reason, remedy } = await unifiedAvailability(device);
  if (!available) throw new FastSafetensorsError('COPIER_UNAVAILABLE', `the copier "unified": ${reason}; ${remedy}`);
  return openDevice(device, true, near);
}
