/** That the database reads an array as it was, whatever stands in it. */
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { integerArray, textArray } from '../src/postgres/array-literal.ts';
import { SUBSTRATES, type Database, type Substrate } from './postgres-substrate.ts';

const awkward = fc.constantFrom('', ' ', 'NULL', 'null', '{', '}', ',', '"', '\\', '\\"', '{"a","b"}', "'", '$1', '\n', '\r\n', '\t', 'é', '😀', '\u{10FFFF}');
// PostgreSQL holds neither NUL nor half a character in a text, and says so.
const text = fc.oneof(awkward, fc.string({ unit: 'binary' }).filter((one) => !one.includes('\0')), fc.array(awkward).map((parts) => parts.join('')));

describe.each(SUBSTRATES)('an array on $title', ({ start }) => {
  let substrate: Substrate;
  let database: Database;
  beforeAll(async () => {
    substrate = await start();
    database = await substrate.open();
  });
  afterAll(async () => {
    await database.close();
    await substrate.stop();
  });

  // As rows: what is compared is what the database has read, and no driver's reading of an array.
  async function read(type: string, literal: string): Promise<readonly unknown[]> {
    const { rows } = await database.app.query<{ one: unknown }>(`SELECT one::text FROM unnest($1::${type}[]) WITH ORDINALITY AS u (one, place) ORDER BY place`, [literal]);
    return rows.map(({ one }) => one);
  }

  it('of texts has each of them as it was, and no other', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.option(text)), async (values) => {
        expect(await read('text', textArray(values))).toEqual(values);
      }),
      { numRuns: 300, examples: [[[]], [[null]], [['']], [['NULL', null, '']], [['a', '"},{"', '\\']]] },
    );
  });

  it('of integers as well', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.maxSafeInteger()), async (values) => {
        expect(await read('bigint', integerArray(values))).toEqual(values.map(String));
      }),
      { numRuns: 100, examples: [[[]], [[Number.MAX_SAFE_INTEGER, Number.MIN_SAFE_INTEGER, 0]]] },
    );
  });
});
