/** Every public name of the packages says what it guarantees; and the check of that sees what it is there to see. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';
import { entryPoints, missingIn } from './docstrings.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const { config } = ts.readConfigFile(join(root, 'tsconfig.json'), ts.sys.readFile) as { config: object };
const { options } = ts.parseJsonConfigFileContent(config, ts.sys, root);

describe('documentation comments', () => {
  it('are there for every public name of every package, with units and codes', () => {
    const files = entryPoints(root);
    expect(files.length).toBeGreaterThan(40);
    expect(missingIn(files, root, options)).toEqual([]);
  }, 120_000);
});

const ERRORS = "class UsageError extends Error { constructor(code: string) { super(code); } }\nconst refused = (): UsageError => new UsageError('made_elsewhere');\n";

function missing(source: string): string[] {
  const folder = mkdtempSync(join(tmpdir(), 'keyguard-docstrings-'));
  try {
    writeFileSync(join(folder, 'a.ts'), ERRORS + source);
    return missingIn([join(folder, 'a.ts')], folder, { ...options, types: [] }).map((problem) => problem.replace(/^a\.ts:\d+ /, ''));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

describe('the check', () => {
  it.each([
    ['a function that says nothing', 'export function f(): void {}', ['f: says nothing']],
    ['a type, a constant and a class', 'export type T = 1;\nexport const c = "";\nexport class K {}', ['T: says nothing', 'c: says nothing', 'K: says nothing']],
    ['a name that only another file exports', 'function f(): void {}\nexport { f as g };', ['f: says nothing']],
    ['a method', '/** I. */ export interface I { m(): void }', ['I.m: says nothing']],
    ['a number without a unit', '/** I. */ export interface I { readonly delay: number | null }', ['I.delay: a number without a unit']],
    ['a parameter without a unit', '/** F. */ export function f(delay: number): void { void delay; }', ['f(delay): a number without a unit']],
    ['a throw', "/** F. */ export function f(): void { throw new UsageError('a_code'); }", ['f: throws, and has no @throws']],
    ['a throw in a constant', "/** F. */ export const f = (): void => { throw new UsageError('a_code'); };", ['f: throws, and has no @throws']],
    ['a throw in what is called', '/** F. */ export function f(): void { g(); }\nfunction g(): void { throw refused(); }', ['f: throws, and has no @throws']],
    ['another code than the one that is thrown', "/** F. @throws UsageError `other_code` */ export function f(): void { throw new UsageError('a_code'); }", ['f: throws a_code, which its @throws does not name']],
    ['a code that another function makes', '/** F. @throws UsageError */ export function f(): void { throw refused(); }', ['f: throws made_elsewhere, which its @throws does not name']],
    ['a throw in a method', "/** K. */ export class K {\n/** M. */ m(): void { throw new UsageError('a_code'); } }", ['K.m: throws, and has no @throws']],
  ])('sees %s', (_, source, expected) => {
    expect(missing(source)).toEqual(expected);
  });

  it.each([
    ['words, units and codes', "/** F. `delay` in hours. @throws UsageError `a_code` */ export function f(delay: number, waitMs: number): void { if (delay + waitMs > 1) throw new UsageError('a_code'); }"],
    ['an error that is caught', "/** F. */ export function f(): void { try { throw new UsageError('a_code'); } catch { /* Expected. */ } }"],
    ['what a function in it throws', "/** F. */ export function f(): () => void { return () => { throw new UsageError('a_code'); }; }"],
    ['what is private', '/** K. */ export class K { readonly #n = 1; #m(): void { void this.#n; }\n/** R. */ run(): void { this.#m(); } }'],
  ])('is content with %s', (_, source) => {
    expect(missing(source)).toEqual([]);
  });
});
