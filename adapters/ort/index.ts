export { type ExecutionProvider, PROVIDER, type ProviderOptions, registerBackend } from './backend.js';
export {
  type CreateSessionOptions,
  createSession,
  type OnnxRuntimeNode,
  type SessionExtras,
} from './create-session.js';
export { OrtDeviceBuffer } from './device-buffer.js';
export { type OnnxRuntime, onnxruntime } from './framework.js';
export { type Unmatched, UnmatchedWeightsError, type WeightNames as Names } from './match.js';
