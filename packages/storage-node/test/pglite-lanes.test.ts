/** One PGlite database for what must be short and for what may wait: who goes first, and who is let through all the same. */
import { PGlite } from '@electric-sql/pglite';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { pgliteLanes, type PgliteLanes } from '../src/postgres/pglite.ts';

let database: PGlite;
let lanes: PgliteLanes;
beforeAll(async () => {
  database = await PGlite.create();
  lanes = pgliteLanes(database);
}, 60_000);
afterAll(() => database?.close());

/** Holds the database until it is let go. */
async function hold(): Promise<() => Promise<void>> {
  let letGo = (): void => {};
  const held = new Promise<void>((resolve) => (letGo = resolve));
  let begun = (): void => {};
  const hasBegun = new Promise<void>((resolve) => (begun = resolve));
  const done = lanes.rest.transaction(async (tx) => {
    await tx.query('SELECT 1');
    begun();
    await held;
  });
  await hasBegun;
  return async () => {
    letGo();
    await done;
  };
}

it('does what is in the first lane before all that waits in the other, in the order in which each was asked', async () => {
  const order: string[] = [];
  const letGo = await hold();
  const asked = [
    lanes.rest.query('SELECT 1').then(() => order.push('rest 1')),
    lanes.rest.transaction(async (tx) => void (await tx.query('SELECT 1'))).then(() => order.push('rest 2')),
    lanes.first.transaction(async (tx) => void (await tx.query('SELECT 1'))).then(() => order.push('first 1')),
    lanes.first.query('SELECT 1').then(() => order.push('first 2')),
  ];
  expect(order).toEqual([]);
  await letGo();
  await Promise.all(asked);
  expect(order).toEqual(['first 1', 'first 2', 'rest 1', 'rest 2']);
});

it('lets the other lane through after some, however many come in the first', async () => {
  const letGo = await hold();
  let passed = 0;
  const state = { isOver: false };
  const flood = async (): Promise<void> => {
    for (; !state.isOver; passed += 1) await lanes.first.query('SELECT 1');
  };
  const floods = [flood(), flood(), flood()];
  const waits = lanes.rest.query('SELECT 1').then(() => passed);
  await letGo();
  const before = await waits;
  state.isOver = true;
  await Promise.all(floods);
  expect(before).toBeGreaterThan(10);
  expect(before).toBeLessThanOrEqual(40);
});

it('goes on when something has failed', async () => {
  await expect(lanes.rest.query('SELECT nothing')).rejects.toThrow('nothing');
  await expect(lanes.first.transaction(() => Promise.reject(new Error('mine')))).rejects.toThrow('mine');
  expect((await lanes.first.query<{ one: number }>('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
  expect((await lanes.rest.query<{ one: number }>('SELECT 1 AS one')).rows).toEqual([{ one: 1 }]);
});

it('leaves the event loop to others meanwhile, also in one long transaction', async () => {
  let turns = 0;
  const state = { isOver: false };
  const count = async (): Promise<void> => {
    for (; !state.isOver; turns += 1) await pause(0);
  };
  const counting = count();
  await lanes.rest.transaction(async (tx) => {
    for (let i = 0; i < 200; i += 1) await tx.query('SELECT count(*) FROM generate_series(1, 2000)');
  });
  state.isOver = true;
  await counting;
  expect(turns).toBeGreaterThan(10);
});
