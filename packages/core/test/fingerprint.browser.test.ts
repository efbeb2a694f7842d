/** The fingerprint in a real browser: what it says of itself is found, and stays the same over frames and calls. */
import { expect, it } from 'vitest';
import { browserFingerprint, browserSignals, fingerprintDigest } from '@keyguard/core/fingerprint';

const options = { salt: new Uint8Array(32).fill(9), saltVersion: 1 };

it('finds every signal in this browser, as a bucket or a common name', () => {
  const signals = browserSignals();
  expect(Object.keys(signals)).toEqual(['runtime', 'system', 'language', 'time_zone', 'cores', 'screen_long', 'screen_short']);
  expect(signals).toMatchObject({
    runtime: 'browser',
    system: 'linux',
    language: navigator.language.toLowerCase(),
    time_zone: Intl.DateTimeFormat().resolvedOptions().timeZone,
    cores: expect.stringMatching(/^(?:to|more than) \d+$/) as string,
    screen_long: expect.stringMatching(/^(?:to|more than) \d+$/) as string,
    screen_short: expect.stringMatching(/^(?:to|more than) \d+$/) as string,
  });
});

it('is the keyed digest of these signals, the same at every call and in every frame', async () => {
  const digest = await browserFingerprint(options).digest();
  expect(digest).toMatch(/^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$/);
  expect(await fingerprintDigest(browserSignals(), options)).toBe(digest);
  expect(await browserFingerprint({ ...options, saltVersion: 2 }).digest()).not.toBe(digest);
  const frame = document.body.appendChild(document.createElement('iframe'));
  expect(await browserFingerprint(options, frame.contentWindow as Window & typeof globalThis).digest()).toBe(digest);
  frame.remove();
});

it('draws nothing, plays nothing and sends nothing', async () => {
  const before = performance.getEntriesByType('resource').length;
  const touched: string[] = [];
  const { getContext } = HTMLCanvasElement.prototype;
  HTMLCanvasElement.prototype.getContext = function (this: HTMLCanvasElement, ...args: unknown[]): null {
    touched.push(`canvas ${String(args[0])}`);
    return null;
  } as typeof getContext;
  const { AudioContext: Audio } = globalThis;
  globalThis.AudioContext = class extends Audio {
    constructor() {
      super();
      touched.push('audio');
    }
  };
  try {
    await browserFingerprint(options).digest();
  } finally {
    HTMLCanvasElement.prototype.getContext = getContext;
    globalThis.AudioContext = Audio;
  }
  expect(touched).toEqual([]);
  expect(performance.getEntriesByType('resource').length).toBe(before);
  expect(document.cookie).toBe('');
});
