/** Two tabs of a real Chromium share one device key in IndexedDB, and both rotate it through the real router. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { build } from 'esbuild';
import type { RequestHandler } from 'express';
import { chromium, type BrowserContext, type Page } from 'playwright-core';
import { afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import type { EnrolledDevice } from '@keyguard/core';
import { KEY_NAME, openWorld, type World } from './rotation-world.ts';

const OVERLAP_MS = 60_000;

// What a test asks of a tab, as functions that answer with plain data.
const ENTRY = `
import { KeyGuardClient } from '@keyguard/core';
import { indexedDbKeyStore } from '@keyguard/storage-indexeddb';

const keyStore = indexedDbKeyStore();
const guard = new KeyGuardClient({ origin: location.origin, keyStore, keyName: ${JSON.stringify(KEY_NAME)} });
const outcome = (work) => work.catch(({ name, code }) => ({ name, code }));
globalThis.device = {
  enroll: (code) => outcome(guard.enroll({ code })),
  rotate: (code) => outcome(guard.rotate({ code })),
  call: async () => {
    const response = await guard.fetch(location.origin + '/api/anything');
    return { status: response.status, ...(await response.json()) };
  },
  keyId: async () => (await keyStore.get(${JSON.stringify(KEY_NAME)}))?.keyId,
  pendingId: async () => (await keyStore.getPending(${JSON.stringify(KEY_NAME)}))?.keyId,
};
`;

interface Refusal {
  readonly name: string;
  readonly code: string;
}
declare const device: {
  enroll(code: string): Promise<EnrolledDevice | Refusal>;
  rotate(code: string): Promise<EnrolledDevice | Refusal>;
  call(): Promise<{ status: number; signedBy?: string }>;
  keyId(): Promise<string | undefined>;
  pendingId(): Promise<string | undefined>;
};

let script: string;
let world: World;
let profile: string;
let context: BrowserContext;
/** Stands before everything else; a test puts in what it wants to happen to a rotation. */
let meddle: RequestHandler;

beforeAll(async () => {
  const { outputFiles } = await build({
    stdin: { contents: ENTRY, resolveDir: import.meta.dirname, loader: 'js' },
    bundle: true,
    write: false,
    format: 'iife',
    platform: 'browser',
    conditions: ['@keyguard/source'],
  });
  script = outputFiles[0]!.text;
});
beforeEach(async () => {
  // The tabs tell the time by their own clock.
  world = await openWorld({
    nowMs: Date.now(),
    ticks: true,
    before(app) {
      app.use('/api/keyguard/rotate', (request, response, next) => meddle(request, response, next));
      app.get('/device.js', (_request, response) => void response.type('text/javascript').send(script));
      app.get('/', (_request, response) => void response.type('html').send('<!doctype html><title>device</title><script src="/device.js"></script>'));
    },
  });
  meddle = (_request, _response, next) => next();
  profile = await mkdtemp(join(tmpdir(), 'keyguard-tabs-'));
  context = await chromium.launchPersistentContext(profile, { ...inject('chromium'), headless: true });
});
afterEach(async () => {
  await context.close();
  await world.close();
  await rm(profile, { recursive: true, force: true, maxRetries: 5 });
});

async function openTab(): Promise<Page> {
  const page = await context.newPage();
  await page.goto(world.origin);
  return page;
}

const rotate = (page: Page, code: string): Promise<EnrolledDevice | Refusal> => page.evaluate((code) => device.rotate(code), code);
const call = (page: Page): Promise<{ status: number; signedBy?: string }> => page.evaluate(() => device.call());
const keyId = (page: Page): Promise<string | undefined> => page.evaluate(() => device.keyId());
const pendingId = (page: Page): Promise<string | undefined> => page.evaluate(() => device.pendingId());

async function enrolled(page: Page): Promise<EnrolledDevice> {
  const answer = await page.evaluate((code) => device.enroll(code), world.newEnrollmentCode());
  expect(answer).toMatchObject({ status: 'active' });
  return answer as EnrolledDevice;
}

async function expectOneKey(pages: readonly Page[], deviceId: string): Promise<void> {
  const ids = new Set(await Promise.all(pages.map(keyId)));
  expect([...ids]).toEqual(world.currentKeyIds(deviceId));
  const answers = await Promise.all(pages.map(call));
  for (const answer of answers) expect(answer).toEqual({ status: 200, signedBy: [...ids][0] });
}

describe('two tabs', { timeout: 60_000 }, () => {
  it('that rotate at once end with one key, which both use, round after round', async () => {
    const tabs = await Promise.all([openTab(), openTab()]);
    const { deviceId, keyId: first } = await enrolled(tabs[0]);
    const seen = new Set([first]);
    for (let round = 0; round < 6; round += 1) {
      const code = world.newRotationCode(deviceId);
      const answers = await Promise.all(tabs.map((tab) => rotate(tab, code)));
      const [current] = world.currentKeyIds(deviceId);
      expect(answers.some((answer) => 'keyId' in answer)).toBe(true);
      for (const answer of answers) if ('keyId' in answer) expect(answer.keyId).toBe(current);
      expect(seen.has(current!)).toBe(false);
      seen.add(current!);
      await expectOneKey(tabs, deviceId);
      world.time.nowMs += OVERLAP_MS / 4;
    }
  });

  it('of which one rotates: the other goes on with the new key, also after the old one has ended, without a reload', async () => {
    const [one, two] = [await openTab(), await openTab()];
    const { deviceId } = await enrolled(one);
    expect((await call(two)).status).toBe(200);
    await rotate(one, world.newRotationCode(deviceId));
    world.time.nowMs += OVERLAP_MS;
    await expectOneKey([one, two], deviceId);
  });

  it('of which one is closed while the server has rotated and not answered: the other goes on', async () => {
    const [one, two] = [await openTab(), await openTab()];
    const { deviceId, keyId: first } = await enrolled(one);
    // The router answers, and the answer is kept from leaving.
    const carriedOut = new Promise<void>((resolve) => {
      meddle = (_request, response, next) => {
        response.json = () => {
          resolve();
          return response;
        };
        next();
      };
    });
    const lost = rotate(one, world.newRotationCode(deviceId)).catch((error: Error) => error);
    await carriedOut;
    await one.close();
    expect(await lost).toBeInstanceOf(Error);
    expect(await keyId(two)).toBe(first);
    const pending = await pendingId(two);
    expect(world.currentKeyIds(deviceId)).toEqual([pending]);
    // The old key is still good for a while, and then the pending one is found to be the key.
    expect(await call(two)).toEqual({ status: 200, signedBy: first });
    world.time.nowMs += OVERLAP_MS;
    expect(await call(two)).toEqual({ status: 200, signedBy: pending });
    expect(await pendingId(two)).toBeUndefined();
    await expectOneKey([two, await openTab()], deviceId);
  });

  it('of which one gets no answer and one is refused for its code: both go on, and the next rotation is the one that was begun', async () => {
    const tabs = await Promise.all([openTab(), openTab()]);
    const [one, two] = tabs;
    const { deviceId } = await enrolled(one);
    const code = world.newRotationCode(deviceId);
    meddle = (request) => void request.socket.destroy();
    expect(await rotate(one, code)).toMatchObject({ code: 'server_unavailable' });
    const pending = await pendingId(one);
    meddle = (_request, _response, next) => next();
    expect(await rotate(two, 'not the code')).toMatchObject({ code: 'rotation_rejected' });
    await expectOneKey(tabs, deviceId);
    expect(await rotate(two, code)).toMatchObject({ keyId: pending });
    world.time.nowMs += OVERLAP_MS;
    await expectOneKey(tabs, deviceId);
  });
});
