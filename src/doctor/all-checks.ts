import { tmpdir } from 'node:os';
import { resolve } from 'node:path';
import { packageFolder } from '../native/addon.js';
import { check, type DoctorCheck, messageOf } from './check.js';
import { copiesCheck, ortCheck, tensorFlowCheck } from './framework-checks.js';
import * as host from './host-checks.js';
import { type Answer, runProbe } from './run-probe.js';
import * as storage from './storage-checks.js';

/** A mount that lives answers in milliseconds. */
const MOUNT_LIMIT_MS = 5000;

/** Every check, in the order in which they are shown. Never rejects. */
export async function allChecks(given: string | undefined): Promise<DoctorCheck[]> {
  const folder = resolve(given ?? tmpdir());
  const addonAnswer = runProbe('addon', []);
  const loads = addonAnswer.then(({ failure }) => failure === undefined);
  /** A probe that needs the addon. */
  const withAddon = async <T>(begin: () => Promise<Answer<T>>): Promise<Answer<T>> =>
    (await loads) ? begin() : { failure: host.WITHOUT_ADDON };
  const points = storage.threeFsMounts();
  const mounted = points.length > 0;
  const system = withAddon(() => runProbe('system', []));
  const file = withAddon(() => runProbe('file', [folder]));
  const gpuAnswer = withAddon(() => runProbe('gpus', []));
  const threeFs = withAddon(() => runProbe('threeFs', []));
  const nccl = withAddon(() => runProbe('nccl', []));
  const mounts = Promise.all(points.map((point) => withAddon(() => runProbe('mount', [point], MOUNT_LIMIT_MS))));
  const found = runProbe('frameworks', [[process.cwd(), packageFolder()]]);

  const gpu = unlessNotLooked('gpu', gpuAnswer, storage.gpuCheck);
  const hasGpu = gpu.then(({ state }) => state === 'ok');
  const cufile = hasGpu.then((has) =>
    has ? runProbe('cufile', [folder]) : ({ failure: host.WITHOUT_ADDON } as const),
  );
  const frameworks = (
    name: string,
    make: (all: Awaited<ReturnType<typeof value>>) => DoctorCheck | Promise<DoctorCheck>,
  ) => value().then(make, (error) => check('broken', name, messageOf(error)));
  const value = async () => {
    const answer = await found;
    if (answer.failure !== undefined) throw new Error(answer.failure);
    return answer.value;
  };
  const gpuNodes = async (): Promise<number[]> =>
    host.answered(await gpuAnswer)?.gpus.map(({ numaNode }) => numaNode) ?? [];

  const checks: [name: string, made: DoctorCheck | Promise<DoctorCheck>][] = [
    ['addon', addonAnswer.then(host.addonCheck)],
    ['node', host.nodeCheck()],
    ['gpu', gpu],
    ['cufile', Promise.all([cufile, gpu]).then(([answer, of]) => storage.cufileCheck(answer, of, folder))],
    ['nccl', unlessNotLooked('nccl', nccl, storage.ncclCheck)],
    ['3fs library', unlessNotLooked('3fs library', threeFs, (answer) => storage.threeFsCheck(answer, mounted))],
    ['3fs mounts', mounts.then((answers) => storage.mountsCheck(points, answers))],
    ['/dev/shm', storage.shmCheck(mounted)],
    ['memlock', host.memlockCheck(mounted)],
    ['nofile', host.nofileCheck()],
    ['io_uring', unlessNotLooked('io_uring', system, host.ioUringCheck)],
    ['huge pages', host.hugePagesCheck()],
    ['numa', Promise.all([system, gpuNodes()]).then(([answer, nodes]) => host.numaCheck(answer, nodes))],
    ['page cache', unlessNotLooked('page cache', file, (answer) => host.pageCacheCheck(answer, folder))],
    ['leases', unlessNotLooked('leases', file, (answer) => host.leasesCheck(answer, folder))],
    ['onnxruntime-node', frameworks('onnxruntime-node', async (all) => ortCheck(all, await hasGpu))],
    ['tensorflow.js', frameworks('tensorflow.js', tensorFlowCheck)],
    ['framework copies', frameworks('framework copies', copiesCheck)],
  ];
  // What fails in a check is a line of the report, too.
  return Promise.all(
    checks.map(async ([name, made]) => {
      try {
        return await made;
      } catch (error) {
        return check('broken', name, messageOf(error));
      }
    }),
  );
}

/** The check of an answer, where the addon that gives it loads. */
async function unlessNotLooked<T>(
  name: string,
  asked: Promise<Answer<T>>,
  make: (answer: Answer<T>) => DoctorCheck,
): Promise<DoctorCheck> {
  const answer = await asked;
  return answer.failure === host.WITHOUT_ADDON ? check('missing', name, host.WITHOUT_ADDON) : make(answer);
}
