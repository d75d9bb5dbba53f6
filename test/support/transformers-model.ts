import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { noise } from '../../src/models/onnx/noise.js';
import { TENSOR } from '../../src/models/onnx/schema.js';
import { saveFile } from '../../src/safetensors/save-file.js';
import { bytesOf, externalTensor, model, node, rawTensor, TYPES, tensor, value } from './onnx-model.js';

/** Where the weights of the model are: in the graph, in `model.onnx_data` beside it, or nowhere (a name of no file). */
export type WeightsIn = 'graph' | 'onnx_data' | 'nowhere';

export interface TransformersModel {
  readonly folder: string;
  readonly graph: string;
  /** The weights again, under their names, as `model.safetensors`. */
  readonly weights: string;
  readonly bytes: number;
}

const WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', 'the', 'weights', 'are', 'loaded', 'once', 'and', 'not', 'twice'];

/**
 * A model as the hub has them for Transformers.js: config.json, a tokenizer of a few words, and onnx/model.onnx, an
 * encoder of type 'bert' of `layers` MatMuls of [width, width] after an embedding.
 */
export async function writeTransformersModel(
  folder: string,
  where: WeightsIn,
  { layers = 4, width = 64 } = {},
): Promise<TransformersModel> {
  mkdirSync(join(folder, 'onnx'), { recursive: true });
  const json = (name: string, content: unknown) => writeFileSync(join(folder, name), JSON.stringify(content));
  json('config.json', {
    model_type: 'bert',
    architectures: ['BertModel'],
    hidden_size: width,
    num_hidden_layers: layers,
    vocab_size: WORDS.length,
    ...(where === 'onnx_data' && { 'transformers.js_config': { use_external_data_format: { 'model.onnx': 1 } } }),
  });
  const vocab = Object.fromEntries(WORDS.map((word, i) => [word, i]));
  json('tokenizer.json', {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: WORDS.slice(0, 4).map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: { type: 'Whitespace' },
    post_processor: null,
    decoder: null,
    model: { type: 'WordLevel', vocab, unk_token: '[UNK]' },
  });
  json('tokenizer_config.json', { tokenizer_class: 'PreTrainedTokenizerFast', pad_token: '[PAD]', unk_token: '[UNK]' });

  const tensors = [
    { name: 'embeddings.weight', shape: [WORDS.length, width] },
    ...Array.from({ length: layers }, (_, i) => ({ name: `encoder.${i}.weight`, shape: [width, width] })),
  ].map(({ name, shape }, seed) => {
    const data = new Float32Array(shape[0]! * width);
    const rows = noise(Math.min(data.length, 16 * width), seed + 1).map((x) => x / Math.sqrt(width));
    for (let at = 0; at < data.length; at += rows.length) data.set(rows.subarray(0, data.length - at), at);
    return { name, dtype: 'F32' as const, shape, data: bytesOf(data), floats: data };
  });
  const weights = join(folder, 'model.safetensors');
  await saveFile(tensors, weights);

  let offset = 0;
  const initializers = tensors.map(({ name, shape, data, floats }) => {
    if (where === 'graph') return rawTensor(name, shape, floats);
    const entries = { location: where === 'nowhere' ? 'gone' : 'model.onnx_data', offset: String(offset) };
    offset += data.byteLength;
    return externalTensor(name, shape, { ...entries, length: String(data.byteLength) });
  });
  if (where === 'onnx_data')
    writeFileSync(join(folder, 'onnx', 'model.onnx_data'), Buffer.concat(tensors.map(({ data }) => data)));
  const axes = tensor('axes', [1], TYPES.I64, { [TENSOR.rawData]: bytesOf(BigInt64Array.of(2n)) });
  const graph = join(folder, 'onnx', 'model.onnx');
  const ids = ['batch', 'sequence'];
  writeFileSync(
    graph,
    model({
      nodes: [
        node('Gather', ['embeddings.weight', 'input_ids'], ['h0']),
        ...Array.from({ length: layers }, (_, i) => [
          node('MatMul', [`h${i}`, `encoder.${i}.weight`], [`m${i}`]),
          node('Tanh', [`m${i}`], [`h${i + 1}`]),
        ]).flat(),
        node('Cast', ['attention_mask'], ['mask'], { to: { int: TYPES.F32 } }),
        node('Unsqueeze', ['mask', 'axes'], ['mask3']),
        node('Mul', [`h${layers}`, 'mask3'], ['last_hidden_state']),
      ],
      initializers: [...initializers, axes],
      inputs: [value('input_ids', ids, TYPES.I64), value('attention_mask', ids, TYPES.I64)],
      outputs: [value('last_hidden_state', [...ids, width])],
    }),
  );
  return { folder, graph, weights, bytes: tensors.reduce((sum, { data }) => sum + data.byteLength, 0) };
}
