/**
 * Whether the browser may clear this site's data by itself. It asks and tells; it keeps nothing, and a key works either way.
 *
 * @see https://storage.spec.whatwg.org/#persistence
 */

/**
 * - `persistent`: only the user clears the data of this site.
 * - `best-effort`: the browser may clear them, when it is short of room or when the site is not visited for long (Safari: seven
 *   days). It does so for all data of the site at once, without telling; the device then enrolls again, as a new one.
 * - `unknown`: this browser or context does not say.
 *
 * None of them holds in a private window: what is kept there is gone when its last window closes.
 */
export type Persistence = 'persistent' | 'best-effort' | 'unknown';

/**
 * Asks the browser to keep the data of this site, keys included, until the user clears them. Never throws. Chromium and Safari
 * decide by themselves; Firefox asks the user, so call it where somebody has just clicked, for instance to enroll.
 * @param storage default `navigator.storage`
 */
export async function requestPersistence(storage: StorageManager | undefined = globalThis.navigator?.storage): Promise<Persistence> {
  try {
    if (typeof storage?.persist !== 'function') return 'unknown';
    return (await storage.persisted()) || (await storage.persist()) ? 'persistent' : 'best-effort';
  } catch {
    return 'unknown';
  }
}
