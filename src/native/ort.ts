/** What csrc/napi/ort_bindings.cc exports: sessions and values of ONNX Runtime. */
import type { brand, NativeAllocation } from './core.js';

export type NativeOrtSession = { readonly [brand]: 'ort session' };
export type NativeOrtControl = { readonly [brand]: 'ort control' };
export type NativeOrtValue = { readonly [brand]: 'ort value' };

/** A tensor for ONNX Runtime. Its elements are in one of memory (with offset), data, strings and value. */
export interface OrtSource {
  /** ONNX's number of the element type. */
  readonly type: number;
  readonly dims: readonly number[];
  readonly memory?: NativeAllocation;
  readonly offset?: number;
  readonly byteLength?: number;
  readonly data?: Uint8Array;
  readonly strings?: readonly string[];
  readonly value?: NativeOrtValue;
}
export interface OrtFeed extends OrtSource {
  readonly name: string;
}
/** A weight over memory of ours: an initializer of the model, or an input that every run is fed. */
export interface OrtWeight extends OrtFeed {
  readonly isInput: boolean;
}
export interface OrtFetch extends Partial<OrtSource> {
  readonly name: string;
  /** Leave the output on the session's device. */
  readonly onDevice?: boolean;
  /** Write the output into the source's memory. */
  readonly given?: boolean;
}
export interface OrtPort {
  readonly name: string;
  readonly isTensor: boolean;
  readonly type: number;
  readonly shape: readonly (number | string)[];
}
/** An output: one of strings, data and value. With value come byteLength, device and pointer. */
export interface OrtResult {
  readonly type: number;
  readonly dims: number[];
  readonly strings?: string[];
  readonly data?: ArrayBuffer;
  readonly value?: NativeOrtValue;
  readonly byteLength?: number;
  readonly device?: string;
  readonly pointer?: bigint;
}
export interface OrtRunConfig {
  readonly logSeverityLevel?: number;
  readonly logVerbosityLevel?: number;
  readonly tag?: string;
  readonly entries?: readonly (readonly [string, string])[];
}
export interface OrtSessionConfig {
  readonly device: string;
  /** What messages call the model. */
  readonly modelName: string;
  readonly model: string | Uint8Array;
  readonly weights?: readonly OrtWeight[];
  readonly externalFiles?: readonly { readonly path: string; readonly data: Uint8Array }[];
  readonly entries?: readonly (readonly [string, string])[];
  readonly providerOptions?: readonly (readonly [string, string])[];
  readonly freeDimensions?: readonly (readonly [string, number])[];
  readonly [option: string]: unknown;
}
/** @internal */
export interface OrtAddon {
  /** Whether a file surely has no data at all, only a size. */
  isHole(path: string): Promise<boolean>;
  ortLibrary(logSeverity: number, device?: string): { path: string; version: string };
  ortCreateSession(config: OrtSessionConfig, control: NativeOrtControl): Promise<NativeOrtSession>;
  ortPorts(session: NativeOrtSession): { inputs: OrtPort[]; outputs: OrtPort[] };
  ortNewControl(): NativeOrtControl;
  ortStop(control: NativeOrtControl): void;
  ortEndProcess(): void;
  ortRun(
    session: NativeOrtSession,
    control: NativeOrtControl,
    feeds: readonly OrtFeed[],
    fetches: readonly OrtFetch[],
    config: OrtRunConfig,
  ): Promise<(OrtResult | null)[]>;
  ortCloseSession(session: NativeOrtSession): Promise<void>;
  ortReadValue(value: NativeOrtValue): Promise<ArrayBuffer>;
  ortReleaseValue(value: NativeOrtValue): void;
  ortDescribe(source: OrtSource): {
    pointer: bigint;
    device: string;
    name: string;
    id: number;
    vendorId: number;
    byteLength: number;
  };
}
