export { type TfjsFramework, tfjs } from './framework.js';
export { type SafetensorsHandler, type SafetensorsHandlerOptions, safetensorsHandler } from './handler.js';
export { type LayersModelOptions, loadGraphModel, loadLayersModel, type ModelOptions } from './models.js';
export type { TensorFlow, TensorFlowModels } from './tensorflow.js';
