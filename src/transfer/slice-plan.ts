import { DTYPE_BITS, DTYPE_NAMES, type DTypeName } from '../base/dtype.js';
import { Turns } from '../base/timers.js';
import type { SafeTensorsMetadata, TensorFrame } from '../safetensors/metadata.js';
import type { RunGrid } from '../safetensors/tensor-frame.js';
import { convertedDtype } from './convert-items.js';
import type { Conversion } from './items.js';
import { Plan, packedItems } from './plan.js';

/** Bytes of a hole between two runs that cost less than another read. */
const LARGEST_GAP = 32 * 1024;
/** Bytes: longer runs are worth a read each, straight into place. */
const SHORT_RUN = 64 * 1024;
/** Bytes of a piece: runs read together with their holes, held beside the slice until they are copied out. */
const PIECE_BYTES = 32 * 1024 * 1024;
/** Bytes, as for the engine's own outputs: whole registers are stored without crossing a cache line. */
const PIECE_ALIGNMENT = 64;

/** How a slice is read. */
export interface SlicePlan {
  readonly plan: Plan;
  readonly dtype: DTypeName; // in memory
  readonly byteLength: number; // of the slice in memory
  /**
   * How the runs of the pieces in an allocation are copied into the slice's memory, as copyAllocation takes it; null
   * where the plan's one allocation is the slice itself.
   */
  readonly copyOf: ((allocation: number) => Float64Array) | null;
}

/** How the runs of a slice are put together: those of the inner dimensions are one piece. */
interface Pieces {
  readonly outer: RunGrid['dims'];
  /** The dimension between them, if its indices go into pieces of `rows` each; null where no dimension is cut. */
  readonly cut: { readonly count: number; readonly stride: number; readonly rows: number } | null;
  readonly inner: RunGrid['dims'];
  /** Bytes of the inner dimensions in the file, holes included. */
  readonly span: number;
}

/**
 * Plans the reading of one slice that is not empty. Runs that are long or far apart are read one by one, straight into
 * place; others in pieces, together with the holes between them. So the cost follows the bytes that are read, not the
 * number of runs. UNSUPPORTED_DTYPE as for the whole tensor.
 */
export async function planSlice(
  metadata: SafeTensorsMetadata,
  slice: TensorFrame,
  conversion: Conversion = {},
): Promise<SlicePlan> {
  const tensor = metadata.indexOf(slice.name);
  const target = convertedDtype(metadata, tensor, conversion);
  const grid = slice.grid();
  const piece = piecesOf(grid);
  // Bytes in memory of whole elements in the file. Dtypes smaller than a byte are not converted.
  const inMemory = (bytes: number): number =>
    target === slice.dtype ? bytes : (bytes / DTYPE_BITS[slice.dtype]) * DTYPE_BITS[target];
  const byteLength = inMemory(slice.byteLength);
  const gathers = piece.inner.length > 0 || piece.cut !== null;

  const rows = piece.cut?.rows ?? 1;
  const chunks = piece.cut ? Math.ceil(piece.cut.count / rows) : 1;
  const count = piece.outer.reduce((product, dim) => product * dim.count, chunks);
  const lastRows = piece.cut ? piece.cut.count - (chunks - 1) * rows : 1;
  const rowStride = Math.abs(piece.cut?.stride ?? 0);
  const lengthOf = (ofRows: number): number => (ofRows - 1) * rowStride + piece.span;
  // Pieces of one shape share an allocation, at equal distances, so that one call copies their runs. Those that were
  // cut have one each.
  const pitch = Math.ceil(inMemory(lengthOf(rows)) / PIECE_ALIGNMENT) * PIECE_ALIGNMENT;
  const together = !gathers ? count : piece.cut ? 1 : Math.max(1, Math.floor(PIECE_BYTES / pitch));

  const parts = { ...packedItems(count), allocationSizes: new Float64Array(Math.ceil(count / together)) };
  // From the run at index 0 of the inner dimensions to a piece's first byte: strides may be negative.
  const innerBegin = piece.inner.reduce(
    (begin, { count: size, stride }) => begin + Math.min(0, (size - 1) * stride),
    0,
  );
  const index = new Array<number>(piece.outer.length).fill(0);
  const turns = new Turns();
  const runBytes = inMemory(grid.length);
  let outerAt = metadata.dataStart + grid.offset;
  for (let part = 0, chunk = 0; part < count; ++part) {
    const here = chunk === chunks - 1 ? lastRows : rows;
    const stride = piece.cut?.stride ?? 0;
    const first = chunk * rows * stride + Math.min(0, (here - 1) * stride);
    parts.allocations[part] = Math.floor(part / together);
    parts.offsets[part] = outerAt + first + innerBegin;
    parts.lengths[part] = lengthOf(here);
    parts.sizes[part] = inMemory(lengthOf(here));
    parts.destinations[part] = gathers ? (part % together) * pitch : part * runBytes;
    parts.allocationSizes[parts.allocations[part]!] = parts.destinations[part]! + parts.sizes[part]!;
    if (++chunk === chunks) {
      chunk = 0;
      outerAt += step(piece.outer, index);
    }
    if (turns.due()) await turns.take();
  }
  parts.tensors.fill(tensor);
  parts.dtypes.fill(DTYPE_NAMES.indexOf(target));
  parts.stored.fill(metadata.packed.dtypes[tensor]!);
  const items = {
    ...parts,
    inputs: [{ metadata, selection: null }],
    converts: target !== slice.dtype,
    allocationBatches: Uint32Array.from(parts.allocationSizes.keys()), // each is a batch
  };
  const plan = Plan.ofItems(items, false);
  if (!gathers) return { plan, dtype: target, byteLength, copyOf: null };

  // Destinations are row-major: a dimension's stride is what the dimensions inside it hold.
  const inner: number[] = [];
  let bytes = runBytes;
  let sourceBegin = 0; // of the run at index 0, in the piece
  for (const { count: size, stride } of piece.inner.toReversed()) {
    inner.unshift(size, inMemory(stride), bytes);
    bytes *= size;
    sourceBegin -= Math.min(0, (size - 1) * stride);
  }
  const copyOf = (allocation: number): Float64Array => {
    const first = allocation * together;
    if (!piece.cut) {
      const pieces = Math.min(together, count - first);
      return Float64Array.of(runBytes, inMemory(sourceBegin), first * bytes, pieces, pitch, bytes, ...inner);
    }
    const chunk = allocation % chunks;
    const { count: size, stride } = piece.cut;
    const here = chunk === chunks - 1 ? lastRows : rows;
    const source = sourceBegin - Math.min(0, (here - 1) * stride);
    const row = Math.floor(allocation / chunks) * size + chunk * rows;
    return Float64Array.of(runBytes, inMemory(source), row * bytes, here, inMemory(stride), bytes, ...inner);
  };
  return { plan, dtype: target, byteLength, copyOf };
}

function piecesOf({ length, dims }: RunGrid): Pieces {
  let span = length;
  let outer = dims.length;
  if (length < SHORT_RUN) {
    for (; outer > 0; --outer) {
      const { count, stride } = dims[outer - 1]!;
      const distance = Math.abs(stride);
      if (distance - span > LARGEST_GAP) break;
      const whole = (count - 1) * distance + span;
      if (whole > PIECE_BYTES) {
        const rows = Math.floor((PIECE_BYTES - span) / distance) + 1;
        if (rows < 2) break;
        return { outer: dims.slice(0, outer - 1), cut: { count, stride, rows }, inner: dims.slice(outer), span };
      }
      span = whole;
    }
  }
  return { outer: dims.slice(0, outer), cut: null, inner: dims.slice(outer), span };
}

/** Advances to the next index; returns by how many bytes that moves. */
function step(dims: RunGrid['dims'], index: number[]): number {
  let moved = 0;
  for (let dimension = dims.length - 1; dimension >= 0; --dimension) {
    const { count, stride } = dims[dimension]!;
    if (++index[dimension]! < count) return moved + stride;
    index[dimension] = 0;
    moved -= stride * (count - 1);
  }
  return moved;
}
