import { FastSafetensorsError, InvalidArgumentError } from '../../src/base/errors.js';
import type { Loose, TensorFlowModels } from './tensorflow.js';

const CLASS_NAME = 'FastSafetensorsPlaceholder';
const registered = new WeakSet<object>();

/**
 * The topology of a layers model with initialisers that compute nothing: every weight is replaced right after, and an
 * orthogonal matrix alone can take minutes. The zeros are address space that nobody touches. The model's configuration
 * still shows the original initialisers. INVALID_INDEX for a topology that is nested too deeply, INVALID_ARGUMENT for a
 * `tf` that has no tf.serialization.
 */
export function placeholderInitializers(tf: TensorFlowModels, topology: unknown): unknown {
  register(tf);
  try {
    return rewrite(topology);
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause;
    throw new FastSafetensorsError('INVALID_INDEX', 'the modelTopology is nested too deeply', { cause });
  }
}

function rewrite(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(rewrite);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) =>
      /_initializer$|Initializer$/.test(key) && typeof inner?.class_name === 'string'
        ? [key, { class_name: CLASS_NAME, config: { original: inner } }]
        : [key, rewrite(inner)],
    ),
  );
}

interface Original {
  readonly className: string;
  readonly config: Loose;
}

function register(tf: TensorFlowModels): void {
  if (typeof tf.serialization?.registerClass !== 'function') {
    throw new InvalidArgumentError('loadLayersModel(tf): expected the TensorFlow.js module, found no tf.serialization');
  }
  if (registered.has(tf.serialization)) return;
  registered.add(tf.serialization);
  class Placeholder extends tf.serialization.Serializable {
    static readonly className = CLASS_NAME;
    readonly original: Original;
    constructor({ original }: { original: Original }) {
      super();
      this.original = original;
    }
    static fromConfig(Class: Loose, config: Loose): Placeholder {
      return new Class(config);
    }
    fromConfigUsesCustomObjects(): boolean {
      return false;
    }
    apply(shape: number[], dtype?: string): Loose {
      return (tf as Loose).zeros(shape, dtype);
    }
    getClassName(): string {
      return this.original.className;
    }
    getConfig(): Loose {
      return this.original.config ?? {};
    }
  }
  tf.serialization.registerClass(Placeholder);
}
