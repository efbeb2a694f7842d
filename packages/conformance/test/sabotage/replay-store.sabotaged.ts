import { replayStoreConformance } from '@keyguard/conformance';
import { newShelf, NO_ROOM, orOutage } from './shelf.ts';

type Flaw = 'sound' | 'looks, then writes' | 'lets pass when it fails' | 'makes room when it is full' | 'forgets early' | 'has no floor' | 'asks again until it is told';

for (const flaw of ['sound', 'looks, then writes', 'lets pass when it fails', 'makes room when it is full', 'forgets early', 'has no floor', 'asks again until it is told'] as const satisfies Flaw[]) {
  replayStoreConformance(`replay: ${flaw}`, () => {
    const shelf = newShelf();
    const pairs = new Map<string, { createdSeconds: number; expiresAtMs: number }>();
    let nowMs = 1_800_000_000_000;
    let floor = 0;

    function forget(): void {
      for (const [pair, { createdSeconds, expiresAtMs }] of pairs) {
        if (expiresAtMs - (flaw === 'forgets early' ? 1 : 0) > nowMs) continue;
        pairs.delete(pair);
        if (flaw !== 'has no floor' && flaw !== 'forgets early') floor = Math.max(floor, createdSeconds);
      }
    }
    function put(pair: string, createdSeconds: number, expiresAtMs: number): boolean {
      if (createdSeconds <= floor || pairs.has(pair)) return false;
      pairs.set(pair, { createdSeconds, expiresAtMs });
      return true;
    }
    const store = {
      claim: (keyId: string, nonce: string, createdSeconds: number, expiresAtMs: number): Promise<boolean> => {
        const pair = `${keyId.length}.${keyId}${nonce}`;
        return orOutage(
          'replay_store',
          async () => {
            if (flaw === 'looks, then writes') {
              if (await shelf.step(() => createdSeconds <= floor || pairs.has(pair), false)) return false;
              await shelf.step(() => pairs.set(pair, { createdSeconds, expiresAtMs }));
              return true;
            }
            if (flaw === 'asks again until it is told') {
              // The first attempt, whose answer was lost, may have been the one that counted: another caller's copy is then taken for it.
              return await shelf.step(() => put(pair, createdSeconds, expiresAtMs)).catch(() => shelf.step(() => pairs.has(pair) || put(pair, createdSeconds, expiresAtMs)));
            }
            return shelf.step(() => put(pair, createdSeconds, expiresAtMs));
          },
          ({ message }) => {
            if (flaw === 'lets pass when it fails' && message !== NO_ROOM) return true;
            return flaw === 'makes room when it is full' && message === NO_ROOM ? true : undefined;
          },
        );
      },
    };
    return { store, peer: store, nowMs: () => nowMs, advance: (ms) => void (nowMs += ms), forget, faults: shelf.faults };
  });
}
