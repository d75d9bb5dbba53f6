/** What csrc/napi/ort_bindings.cc exports: sessions and values of ONNX Runtime's C library. */
import type { brand, NativeAllocation } from './core.js';

export type NativeOrtSession = { readonly [brand]: 'ort session' };
export type NativeOrtControl = { readonly [brand]: 'ort control' };
export type NativeOrtValue = { readonly [brand]: 'ort value' };

/** A tensor for ONNX Runtime: its element type by ONNX's number, and its elements in one of four places. */
export interface OrtSource {
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
export interface OrtFetch extends Partial<OrtSource> {
  readonly name: string;
  /** Leave it where the session runs. */
  readonly onDevice?: boolean;
  /** Write it into the source's place. */
  readonly given?: boolean;
}
export interface OrtPort {
  readonly name: string;
  readonly isTensor: boolean;
  readonly type: number;
  readonly shape: readonly (number | string)[];
}
/** One of strings, data and value, which has byteLength, device and pointer. */
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
  /** For messages. */
  readonly modelName: string;
  readonly model: string | Uint8Array;
  readonly initializers?: readonly OrtFeed[];
  readonly externalFiles?: readonly { readonly path: string; readonly data: Uint8Array }[];
  readonly entries?: readonly (readonly [string, string])[];
  readonly providerOptions?: readonly (readonly [string, string])[];
  readonly freeDimensions?: readonly (readonly [string, number])[];
  readonly [option: string]: unknown;
}
/** csrc/napi/ort_bindings.cc. */
export interface OrtAddon {
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
