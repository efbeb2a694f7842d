import { keyStoreConformance } from '@keyguard/conformance';
import { memoryKeyStore } from '@keyguard/core/memory';

keyStoreConformance('memoryKeyStore', {
  place: () => {
    const store = memoryKeyStore();
    return () => store;
  },
});
