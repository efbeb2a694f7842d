/** Asking and answering at a terminal. What is secret is asked without showing it, or read from a pipe; never from arguments. */
import { createInterface } from 'node:readline/promises';

const { stdin, stdout, stderr } = process;

/** A mistake of the user's, or an answer of the server's, in words; ends the command with exit code 1. */
export class CommandError extends Error {
  override readonly name = 'CommandError';
}

export function print(text: string): void {
  stdout.write(`${text}\n`);
}

export function printJson(value: unknown): void {
  print(JSON.stringify(value, null, 2));
}

/** Just this, without a line break of ours at its end. */
export function printRaw(text: string): void {
  stdout.write(text);
}

/** To people, when the output itself is for a program. */
export function remark(text: string): void {
  stderr.write(`${text}\n`);
}

/** All that is piped in, as it is. */
export async function readPiped(): Promise<string> {
  const chunks: Buffer[] = [];
  for await (const chunk of stdin) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks).toString('utf8');
}

let piped: Promise<string[]> | undefined;

/** The next line of a pipe, `null` when there is none left. */
async function nextPipedLine(): Promise<string | null> {
  piped ??= readPiped().then((text) => text.split(/\r?\n/));
  return (await piped).shift() ?? null;
}

/** Asks for a line, or takes the next one of a pipe. */
export async function ask(question: string): Promise<string> {
  if (!stdin.isTTY) return demand(await nextPipedLine(), question);
  const lines = createInterface({ input: stdin, output: stderr });
  try {
    return demand(await lines.question(`${question}: `), question);
  } finally {
    lines.close();
  }
}

/** Asks for something secret, which is not shown. */
export async function askSecret(question: string): Promise<string> {
  if (!stdin.isTTY) return demand(await nextPipedLine(), question);
  stderr.write(`${question} (not shown): `);
  stdin.setRawMode(true).resume().setEncoding('utf8');
  try {
    return demand(await readHidden(), question);
  } finally {
    stdin.setRawMode(false).pause();
    stderr.write('\n');
  }
}

function readHidden(): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = '';
    const settle = (act: () => void): void => {
      stdin.off('data', onData);
      act();
    };
    const onData = (typed: string): void => {
      for (const character of typed) {
        if (character === '\r' || character === '\n' || character === '\u0004') return settle(() => resolve(text));
        if (character === '\u0003') return settle(() => reject(new CommandError('Cancelled.')));
        if (character === '\u007f' || character === '\b') text = [...text].slice(0, -1).join('');
        else if (character >= ' ') text += character;
      }
    };
    stdin.on('data', onData);
  });
}

/** Yes or no; without a terminal there is nobody to ask, and whoever wrote the script has decided. */
export async function confirm(question: string): Promise<boolean> {
  return !stdin.isTTY || /^y(?:es)?$/i.test((await ask(`${question} [y/N]`)) || 'n');
}

function demand(text: string | null, what: string): string {
  const trimmed = (text ?? '').trim();
  if (trimmed === '') throw new CommandError(`${what} is missing.`);
  return trimmed;
}

// oxlint-disable-next-line no-control-regex -- what a server sends must not steer the terminal
const STEERING = /[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

/** Rows under a heading, as wide as they need to be. */
export function table(heading: readonly string[], rows: readonly (readonly (string | null)[])[]): string {
  const cells = [heading, ...rows].map((row) => row.map((cell) => (cell ?? '-').replace(STEERING, '?')));
  const widths = heading.map((_, i) => Math.max(...cells.map((row) => (row[i] ?? '').length)));
  return cells.map((row) => row.map((cell, i) => cell.padEnd(widths[i]!)).join('  ').trimEnd()).join('\n');
}

/** `2026-01-31 23:59` in the user's own time. */
export function when(time: unknown): string | null {
  if (typeof time !== 'string') return null;
  const date = new Date(time);
  const pad = (value: number): string => String(value).padStart(2, '0');
  return `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())} ${pad(date.getHours())}:${pad(date.getMinutes())}`;
}
