/** `/readyz`: what is wrong is named, nothing else of it is told, and it is over by itself when it is over. */
import { mkdir, rm } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import express from 'express';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import { healthRoutes, type HealthOptions } from '../../src/http/health.ts';
import { folder, remove } from '../stage.ts';

// What an error of a driver may say: it has no business in an answer that anybody gets.
const LEAK = 'postgres://keyguard:of-nobody-elses-concern@10.0.0.7/keyguard';
const never = (): Promise<never> => new Promise(() => {});
const failing = async (): Promise<never> => {
  throw new Error(`connect ECONNREFUSED ${LEAK}`);
};

type Parts = Omit<HealthOptions, 'sql' | 'dataDir'> & { readonly query: () => Promise<unknown>; readonly dataDir: string };
type Answer = { readonly status: number; readonly json: { readonly status: string; readonly checks: Record<string, string> }; readonly text: string };

describe('/readyz', () => {
  let server: Server;
  let data: string;
  let parts: Parts;
  let whole: Parts;

  beforeAll(async () => {
    data = await folder();
    whole = {
      query: async () => ({ rows: [] }), devicesAreWatched: () => {}, settingsAreKnown: () => {}, checkRedis: async () => {}, keysAreKnown: () => {},
      databaseIsWritten: () => {}, checkAuditHead: async () => {}, dataDir: data, isStopping: () => false,
    };
    parts = whole;
    server = createServer((request, response) => app(request, response));
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  });
  afterAll(async () => {
    server.close();
    await remove(data);
  });

  let app = express();
  /** As a process has it: with parts that change under it. */
  function serve(dataDir: string = data, minFreeMib = 1): void {
    const fails = (error: () => void) => (): void => error();
    const sql: SqlClient = { query: () => parts.query() as Promise<never>, transaction: never };
    app = express().use(healthRoutes({
      sql, dataDir, minFreeMib,
      devicesAreWatched: () => parts.devicesAreWatched(), settingsAreKnown: fails(() => parts.settingsAreKnown()), checkRedis: () => parts.checkRedis!(),
      keysAreKnown: fails(() => parts.keysAreKnown()), databaseIsWritten: fails(() => parts.databaseIsWritten()), checkAuditHead: () => parts.checkAuditHead(),
      isStopping: () => parts.isStopping(),
    }));
  }
  async function ask(): Promise<Answer> {
    const response = await fetch(`http://127.0.0.1:${(server.address() as AddressInfo).port}/readyz`);
    const text = await response.text();
    expect(response.headers.get('cache-control')).toBe('no-store');
    return { status: response.status, json: JSON.parse(text) as Answer['json'], text };
  }
  const wrong = ({ json: { checks } }: Answer): object => Object.fromEntries(Object.entries(checks).filter(([, state]) => state !== 'ok'));
  const throwing = (): never => {
    throw new Error(LEAK);
  };

  const cases: [name: string, broken: () => Partial<Parts>, named: Record<string, string>][] = [
    ['a database that is gone', () => ({ query: failing }), { database: 'does not answer' }],
    ['a database that nothing is written to', () => ({ databaseIsWritten: throwing }), { database_writes: 'nothing can be written: is its disk full, or is it read-only?' }],
    ['an audit log whose head is locked', () => ({ checkAuditHead: failing }), { audit_log: 'cannot be appended to' }],
    ['keys that cannot be read', () => ({ keysAreKnown: throwing }), { keys: 'cannot be read, or are under another root key: restart with the right one' }],
    ['devices that nobody watches', () => ({ devicesAreWatched: failing }), { device_changes: 'nothing is heard of changed devices' }],
    ['settings that nobody knows', () => ({ settingsAreKnown: throwing }), { settings: 'nobody can tell which are in force' }],
    ['a Redis that is full or gone', () => ({ checkRedis: failing }), { redis: 'cannot be used' }],
    ['whatever hangs', () => ({ query: never, checkAuditHead: never, checkRedis: never }), { database: 'does not answer', audit_log: 'cannot be appended to', redis: 'cannot be used' }],
    ['a service that is stopping', () => ({ isStopping: () => true }), { service: 'is stopping' }],
  ];
  it.each(cases)('names %s, and nothing else, within two seconds; and is ready again by itself', async (_name, broken, named) => {
    parts = { ...whole, ...broken() };
    serve();
    const beganMs = performance.now();
    const answer = await ask();
    expect(performance.now() - beganMs).toBeLessThan(2000);
    expect([answer.status, answer.json.status, wrong(answer)]).toEqual([503, 'not ready', named]);
    expect(answer.text).not.toContain('of-nobody-elses-concern');
    parts = whole;
    await expect.poll(async () => (await ask()).status, { timeout: 3000, interval: 100 }).toBe(200);
  });

  it('names a data folder that is gone, and a disk without room', async () => {
    parts = whole;
    const inside = join(data, 'inside');
    await mkdir(inside);
    serve(inside);
    expect((await ask()).status).toBe(200);
    await rm(inside, { recursive: true });
    await expect.poll(async () => wrong(await ask()), { timeout: 3000, interval: 100 }).toEqual({ disk: 'the data folder is not there, or cannot be written to' });
    await mkdir(inside);
    await expect.poll(async () => (await ask()).status, { timeout: 3000, interval: 100 }).toBe(200);
    serve(inside, 2 ** 40);
    expect(wrong(await ask())).toEqual({ disk: 'the disk of the data folder has less than 1099511627776 MiB left' });
  });

  it('asks each part once for many who ask at the same time', async () => {
    let asked = 0;
    parts = { ...whole, query: async () => ((asked += 1), { rows: [] }) };
    serve();
    await Promise.all(Array.from({ length: 50 }, ask));
    expect(asked).toBeLessThan(15);
  });
});
