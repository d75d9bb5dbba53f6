import { listed } from '../base/listed.js';
import { check, type DoctorCheck } from './check.js';
import { type FoundFrameworks, type FoundPackage, ORT, TFJS } from './frameworks.js';
import { runProbe } from './run-probe.js';

/** Providers that need a GPU and libraries that may be missing. */
const OF_GPUS = ['cuda', 'tensorrt'];

const resolvedOf = ({ resolved }: FoundFrameworks, name: string): FoundPackage | undefined =>
  resolved.find((found) => found.name === name);

/** Loads it, each provider in a process of its own; those of GPUs where `gpu` says that there is one that works. */
export async function ortCheck(found: FoundFrameworks, gpu: boolean): Promise<DoctorCheck> {
  const ort = resolvedOf(found, ORT);
  if (!ort) return check('missing', ORT, 'not installed', `npm install ${ORT}, where ONNX Runtime is used`);
  const which = `${ort.version}, ${ort.folder}`;
  const first = await runProbe('ort', [ort.entry, 'cpu']);
  if (first.failure !== undefined) {
    const remedy = `install it again with its scripts: npm rebuild ${ort.name} --ignore-scripts=false`;
    return check('broken', ORT, `${which}: it does not load: ${first.failure}`, remedy);
  }
  const wanted = gpu ? OF_GPUS.filter((provider) => first.value.includes(provider)) : [];
  const answers = await Promise.all(wanted.map((provider) => runProbe('ort', [ort.entry, provider])));
  const loads = ['cpu', ...wanted.filter((_, i) => answers[i]!.failure === undefined)];
  const others = wanted.flatMap((provider, i) => {
    const { failure } = answers[i]!;
    return failure === undefined ? [] : [`${provider} does not load: ${failure.split('\n')[0]}`];
  });
  const detail = [`${which}: providers ${loads.join(', ')}`, ...others].join('; ');
  const remedy =
    'for the GPU, install the CUDA libraries of this version (cuDNN too) where the loader finds them, and let ' +
    `${ORT} download its provider: npm rebuild ${ort.name} --ignore-scripts=false`;
  return check('ok', ORT, detail, gpu && !loads.includes('cuda') ? remedy : undefined);
}

export async function tensorFlowCheck(found: FoundFrameworks): Promise<DoctorCheck> {
  const name = 'tensorflow.js';
  const packages = TFJS.flatMap((each) => resolvedOf(found, each) ?? []);
  const [first] = packages;
  if (!first) return check('missing', name, 'not installed', `npm install ${TFJS[1]}, where TensorFlow.js is used`);
  const which = `${first.name} ${first.version}, ${first.folder}`;
  if (first.name === '@tensorflow/tfjs') return check('ok', name, `${which}: without libtensorflow`);
  const answer = await runProbe('tensorFlow', [first.entry]);
  if (answer.failure === undefined) return check('ok', name, `${which}: libtensorflow ${answer.value || 'unknown'}`);
  const remedy = `install it again with its scripts: npm rebuild ${first.name} --ignore-scripts=false`;
  return check('broken', name, `${which}: it does not load: ${answer.failure}`, remedy);
}

/** Two copies of a framework do not know each other's tensors. */
export function copiesCheck({ copies, cut }: FoundFrameworks): DoctorCheck {
  const name = 'framework copies';
  const several = Object.entries(copies).filter(([, folders]) => folders.length > 1);
  if (several.length === 0) return check('ok', name, cut ? 'none seen twice, the search took too long' : 'none twice');
  const detail = several.map(([what, folders]) => `${what} ${folders.length} times: ${listed(folders)}`).join('\n');
  const remedy = 'one knows no tensors of another: npm dedupe, or give this package the copy that your sessions use';
  return check('ok', name, detail, remedy);
}
