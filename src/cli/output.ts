/** Numbers, text and errors as every command prints them. */
import type { ErrorPlace } from '../base/errors.js';

export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  const power = bytes < 1 ? 0 : Math.min(Math.floor(Math.log2(bytes) / 10), units.length - 1);
  return power === 0 ? `${bytes} B` : `${(bytes / 1024 ** power).toFixed(1)} ${units[power]}`;
}

/** In decimal units, as storage vendors use. */
export function formatRate(bytesPerSecond: number): string {
  return `${(bytesPerSecond / 1e9).toFixed(2)} GB/s`;
}

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value, null, 2)}\n`);
}

export function printLine(line = ''): void {
  process.stdout.write(`${printable(line)}\n`);
}

/** `json`: as { error: { code, message, path, … } }; `debug`: with the stack and the causes. */
interface ErrorStyle {
  readonly debug: boolean;
  readonly json: boolean;
}

/** Prints to stderr: `error: CODE: message`, the message's further lines indented, or JSON. */
export function printError(thrown: unknown, { debug, json }: ErrorStyle): void {
  const error: ErrorPlace & NodeJS.ErrnoException =
    thrown instanceof Object ? (thrown as Error) : new Error(String(thrown));
  if (json) {
    const { code = 'INTERNAL', message, path, tensor, offset, stack } = error;
    const shown = { code, message, path, tensor, offset, ...(debug && { stack }) };
    process.stderr.write(`${JSON.stringify({ error: shown }, null, 2)}\n`);
    return;
  }
  const lines = linesOf(`error: ${error.code ?? 'INTERNAL'}: ${error.message}`);
  if (debug) {
    for (let at: unknown = error; at instanceof Object; at = (at as Error).cause)
      lines.push(...String((at as Error).stack).split('\n'));
  }
  process.stderr.write(lines.map((line) => `${printable(line)}\n`).join(''));
}

/** Lines of a text of several; those after the first are indented, so that none looks like one of the command's own. */
export function linesOf(text: string): string[] {
  return text.split('\n').map((line, i) => (i === 0 ? line : `  ${line}`));
}

/** Pads columns to their widest cell and aligns numbers to the right. */
export function printTable(rows: readonly (readonly (string | number)[])[]): void {
  const widths: number[] = [];
  for (const row of rows) {
    for (const [column, cell] of row.entries())
      widths[column] = Math.max(widths[column] ?? 0, printable(String(cell)).length);
  }
  for (const row of rows) {
    const cells = row.map((cell, column) => {
      const text = printable(String(cell));
      return typeof cell === 'number' ? text.padStart(widths[column]!) : text.padEnd(widths[column]!);
    });
    printLine(cells.join('  ').trimEnd());
  }
}

/** Escapes control and direction characters, which could steer a terminal: names come from files. */
function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Bidi_Control}]/gu, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);
}
